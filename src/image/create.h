// New images, raw or qcow2, as files.
#pragma once

#include <cstdint>
#include <string>

#include "image/format.h"
#include "qcow2/image.h"

namespace varve::image {

// Creates the image file at `path`, or overwrites what is there once nobody else uses it. What was not there before and
// can't be finished is removed again.
Result<void> create_raw(const std::string& path, uint64_t size);  // size: bytes, rounded up to whole sectors
// With options.data_file, that file is made, too, or overwritten.
Result<void> create_qcow2(const std::string& path, const qcow2::CreateOptions& options);

}  // namespace varve::image
