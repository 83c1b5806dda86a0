// Sends what a copy has written on its way to the disk while the copy goes on, so that the flush at its end finds less
// to wait for. For pieces that come about in order, from any thread.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>

#include "io/block_device.h"

namespace varve::image {

class WriteBehind {
 public:
  // The device outlives the object.
  explicit WriteBehind(BlockDevice& device) : device_(device) {}

  void written(uint64_t offset, uint64_t length) {
    Stretch full;
    {
      const std::scoped_lock lock(mutex_);
      if (stretch_.bytes == 0) stretch_ = {offset, offset, 0};
      stretch_.begin = std::min(stretch_.begin, offset);
      stretch_.end = std::max(stretch_.end, offset + length);
      stretch_.bytes += length;
      if (stretch_.bytes < kBytes) return;
      full = std::exchange(stretch_, {});
    }
    device_.start_write_back(full.begin, full.end - full.begin);
  }

 private:
  static constexpr uint64_t kBytes = uint64_t{8} << 20;  // less makes the file system place files in small parts

  struct Stretch {
    uint64_t begin = 0;
    uint64_t end = 0;
    uint64_t bytes = 0;
  };

  BlockDevice& device_;
  std::mutex mutex_;
  Stretch stretch_;
};

}  // namespace varve::image
