// Another size for the disk in an image.
#pragma once

#include <cstdint>

#include "image/new_space.h"
#include "image/open.h"

namespace varve::image {

// The image is open for writing. New space reads as zeroes, whatever is below; in
// a LUKS image as noise. A crash leaves the old size (shrinking:
// perhaps with zeroes where it was to be cut off) or the new one.
Result<void> resize(const OpenImage& image, uint64_t new_size, NewSpace new_space);

}  // namespace varve::image
