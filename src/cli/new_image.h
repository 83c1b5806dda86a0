// The image that a verb of `varve image` makes: for create, convert and dd.
#pragma once

#include <string>

#include "cli/image_options.h"
#include "cli/image_source.h"
#include "cli/output.h"

namespace varve::cli {

// Creates it as the options say, which have a size, with the secrets among
// `objects`. The message is the reason alone, in qemu-img's words; warnings are
// printed.
Result<void> create_image(Output& output, const std::string& path, const ImageOptions& options,
                          const ImageObjects& objects);

// What create_image refuses by the options alone.
Result<void> check_new_image(const ImageOptions& options, const ImageObjects& objects);

}  // namespace varve::cli
