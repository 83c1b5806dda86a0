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

Result<void> Turns::Turn::wait() {
  std::unique_lock lock(turns_.mutex_);
  turns_.changed_.wait(lock, [&] { return turns_.next_ >= index_ || turns_.failed_ < index_; });
  if (turns_.failed_ >= index_) return {};
  return make_error(ErrorKind::kInterrupted, "a piece before this one failed");
}

void Turns::Turn::pass() {
  const std::scoped_lock lock(turns_.mutex_);
  if (turns_.next_ > index_) return;
  turns_.next_ = index_ + 1;
  turns_.changed_.notify_all();
}

void Turns::fail(size_t index) {
  const std::scoped_lock lock(mutex_);
  failed_ = std::min(failed_, index);
  changed_.notify_all();
}

Result<void> for_each_in_turn(size_t count, unsigned threads,
                              const std::function<Result<void>(size_t, Turns::Turn&)>& work) {
  Turns turns;
  return for_each_parallel(count, threads, [&](size_t i) {
    Turns::Turn turn(turns, i);
    Result<void> done = work(i, turn);
    if (!done) {
      turns.fail(i);
      return done;
    }
    if (auto waited = turn.wait(); !waited) return waited;
    turn.pass();
    return done;
  });
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
