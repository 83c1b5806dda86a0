#include "image/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace varve::image {

unsigned copy_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return 2;
  return static_cast<unsigned>(std::clamp(CPU_COUNT(&set), 1, 8));
}

Result<void> for_each_parallel(size_t count, unsigned threads, const std::function<Result<void>(size_t)>& work) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  size_t failed_index = std::numeric_limits<size_t>::max();
  std::optional<Error> error;
  const auto run = [&] {
    while (!failed) {
      const size_t index = next.fetch_add(1);
      if (index >= count) return;
      Result<void> done = work(index);
      if (done) continue;
      failed = true;
      const std::scoped_lock lock(mutex);
      if (index >= failed_index) continue;
      failed_index = index;
      error = std::move(done).error();
    }
  };
  std::vector<std::thread> others;
  const size_t wanted = std::min<size_t>(threads, count);
  for (size_t i = 1; i < wanted; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
  if (error) return std::move(*error);
  return {};
}

}  // namespace varve::image
