// What `image info` says about one image file, as the JSON document that qemu-img prints (members in its order), and as
// its text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "image/open.h"

namespace varve::cli {

// `image` is open for Use::kInspect, without its backing files; `name` is what it shall be called.
Result<nlohmann::ordered_json> describe_image(const image::OpenImage& image, const std::string& name);

// The lines that qemu-img prints for the same.
Result<std::string> image_text(const image::OpenImage& image, const std::string& name);

}  // namespace varve::cli
