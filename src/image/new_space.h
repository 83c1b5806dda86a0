// What becomes of space that a new or growing image adds.
#pragma once

#include <cstdint>

#include "io/file_device.h"

namespace varve::image {

enum class NewSpace : uint8_t {
  kSparse,    // nothing is allocated
  kMetadata,  // qcow2: the tables are made, and the file has holes
  kReserved,  // and the file system keeps the space
  kWritten,   // and zeroes are written to it
};

// Fills the holes in [from, end) of `file`, which reads as zeroes there afterwards as before.
Result<void> fill_holes(FileDevice& file, uint64_t from, uint64_t end, NewSpace space);

}  // namespace varve::image
