// Copying a guest's disk from one image to another, holes kept: what reads as zeroes is not written where the target
// reads as zeroes anyhow, and long enough runs of zero bytes in data become holes.
//
// Two threads: one reads and looks for zeroes, one writes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "io/block_device.h"

namespace varve::image {

// A disk to copy from: layers of one chain, top first. A snapshot's view may stand in place of the top.
struct ConvertSource {
  std::vector<BlockDevice*> layers;
  uint64_t size = 0;  // of layers.front(), bytes
};

struct ConvertOptions {
  // Runs of zero bytes of at least this length become holes; 0: everything is written and the target fully allocated.
  uint64_t sparse_size = 4096;
  // The target reads as zeroes everywhere before the copy.
  bool target_is_zero = false;
  // The target's own backing file shows what the source's lower layers hold: only the top layer is copied.
  bool only_top_layer = false;
  // Called by the writing thread now and then; bytes of data.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
};

// Copies the sources, one behind the other, into `target`, which is at least as large as all of them together. The
// caller flushes. An error has the offset in the target, and its message says whether reading or writing failed.
Result<void> convert(const std::vector<ConvertSource>& sources, BlockDevice& target, const ConvertOptions& options);

}  // namespace varve::image
