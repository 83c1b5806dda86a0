// Writing down what overlays hold: their data goes into an image further below in their chain, which then shows by
// itself what the guest saw through all of them. Nothing is read where the overlays know of zeroes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "io/block_device.h"

namespace varve::image {

struct CommitOptions {
  // Called now and then, from any thread but never from two at once; bytes of the disk.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Asked now and then: true ends the work with kInterrupted. The overlays still show what they showed.
  std::function<bool()> interrupted = nullptr;
  uint64_t bytes_per_second = 0;  // 0: as fast as it goes
};

// Copies into layers[base] (open for writing) what the layers above hold, and makes it as large as the top where it is
// smaller. The layers are a chain, top first. Flushed when it returns. Whatever happens, the top shows what it showed:
// what changes below is covered above.
Result<void> commit_to(std::span<const std::shared_ptr<BlockDevice>> layers, size_t base, const CommitOptions& options);

}  // namespace varve::image
