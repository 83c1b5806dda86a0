// What copies between the layers of a chain are going to write, and how much new space at least that takes: told before
// the first byte is written. Only extents are looked at, no data is read.
//
// Every figure of new space is a lower bound: who refuses by it refuses nothing that would have succeeded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "io/block_device.h"

namespace varve::image {

struct CommitNeeds {
  uint64_t data_bytes = 0;   // that go into the base
  uint64_t zero_bytes = 0;   // that become zeroes there
  uint64_t grows_to = 0;     // the base's disk; 0: it is large enough
  uint64_t place_bytes = 0;  // of the data, what has no place in the base yet
  uint64_t new_bytes = 0;    // of these, what free places in the base's file can't take
};

// For commit_to() with the same layers and base.
Result<CommitNeeds> commit_needs(std::span<const std::shared_ptr<BlockDevice>> layers, size_t base);

}  // namespace varve::image
