// Holds copying threads back to so many bytes per second.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

namespace varve::image {

class RateLimit {
 public:
  explicit RateLimit(uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  // Waits until `bytes` more are due. Without a limit, at once.
  void pass(uint64_t bytes) {
    if (bytes_per_second_ == 0) return;
    Clock::time_point until;
    {
      const std::scoped_lock lock(mutex_);
      next_ = std::max(next_, Clock::now());
      until = next_;
      next_ += std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_)));
    }
    std::this_thread::sleep_until(until);
  }

 private:
  using Clock = std::chrono::steady_clock;
  uint64_t bytes_per_second_;
  std::mutex mutex_;
  Clock::time_point next_;
};

}  // namespace varve::image
