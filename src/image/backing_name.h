// The name by which an overlay's header calls its backing file, and the path that it means: relative names are relative
// to the directory of the overlay.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace varve::image {

// "nbd" of "nbd://host/x", "json" of "json:{…}", nothing for a path: a protocol ends with a colon before any slash.
std::optional<std::string> protocol_of(std::string_view name);

// kRefused for a name with a protocol: what images name is opened where it is a plain path.
Result<void> refuse_protocol(const std::string& name);

// The path of backing file `name` of the image at `overlay_path`. "file:PATH" is PATH, taken as it is. Names with other
// protocols are returned as they are.
std::string resolve_backing_name(std::string_view overlay_path, std::string_view name);

}  // namespace varve::image
