// Buffers of one size that threads take and give back: memory of megabytes that is new every time costs more than what
// is done with it.
#pragma once

#include <cstddef>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/aligned_vector.h"

namespace varve::image {

class BufferPool {
 public:
  explicit BufferPool(size_t buffer_size) : buffer_size_(buffer_size) {}

  // A buffer for as long as this lives; what is in it is left over from somebody else.
  class Lease {
   public:
    explicit Lease(BufferPool& pool) : pool_(pool), memory_(pool.take()) {}
    ~Lease() { pool_.give_back(std::move(memory_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    std::span<std::byte> first(size_t length) { return std::span(memory_).first(length); }

   private:
    BufferPool& pool_;
    AlignedVector<std::byte> memory_;
  };

 private:
  AlignedVector<std::byte> take() {
    {
      const std::scoped_lock lock(mutex_);
      if (!free_.empty()) {
        auto memory = std::move(free_.back());
        free_.pop_back();
        return memory;
      }
    }
    return AlignedVector<std::byte>(buffer_size_);
  }
  void give_back(AlignedVector<std::byte> memory) {
    const std::scoped_lock lock(mutex_);
    free_.push_back(std::move(memory));
  }

  size_t buffer_size_;
  std::mutex mutex_;
  std::vector<AlignedVector<std::byte>> free_;
};

}  // namespace varve::image
