// Giving an overlay another backing file while what its guest sees stays the same: where old and new backing chain show
// different bytes, and the overlay has none of its own, it gets the old ones. Nothing is read where both chains show
// the same layer's data, or zeroes.
#pragma once

#include <cstdint>
#include <functional>

#include "image/chain_extents.h"

namespace varve::image {

struct RebaseOptions {
  // Called now and then, from any thread but never from two at once; bytes of the disk.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Asked now and then: true ends the work with kInterrupted, the overlay as valid as before.
  std::function<bool()> interrupted = nullptr;
  // In the place of writing: told what would be written, never by two threads at once. For plans.
  std::function<void(uint64_t offset, uint64_t length, bool zeroes)> instead_of_writing = nullptr;
};

// Copies into `overlay`, which is open for writing with the old chain as its backing device, what its guest would no
// longer see with `new_chain` (empty: no backing file) below it. The caller flushes, and changes the name then; an
// overlay without a backing device has an empty one afterwards.
Result<void> copy_for_rebase(qcow2::Image& overlay, std::span<const ChainLayer> old_chain,
                             std::span<const ChainLayer> new_chain, const RebaseOptions& options);

}  // namespace varve::image
