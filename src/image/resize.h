// Another size for the disk in an image.
#pragma once

#include <cstdint>

#include "image/open.h"

namespace varve::image {

// What becomes of the space that growing adds.
enum class NewSpace : uint8_t {
  kSparse,    // nothing is allocated
  kMetadata,  // qcow2: the tables are made, and the file has holes
  kReserved,  // and the file system keeps the space
  kWritten,   // and zeroes are written to it
};

// The image is open for writing. New space reads as zeroes, whatever is below. A crash leaves the old size (shrinking:
// perhaps with zeroes where it was to be cut off) or the new one.
Result<void> resize(const OpenImage& image, uint64_t new_size, NewSpace new_space);

}  // namespace varve::image
