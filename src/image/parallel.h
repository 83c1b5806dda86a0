// The same work on many pieces, by several threads at once.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <limits>
#include <mutex>

#include "base/result.h"

namespace varve::image {

// How many threads long copies are worth: the processors that this process may use, eight at most.
unsigned copy_threads();

// Lets pieces of work that go on side by side do a part of it one after the other: what a format allocates then lies in
// the order of the disk, the same every time.
class Turns {
 public:
  // One piece's.
  class Turn {
   public:
    Turn(Turns& turns, size_t index) : turns_(turns), index_(index) {}
    // Returns when every piece before this one has passed its turn on. kInterrupted: one of them failed instead.
    Result<void> wait();
    // The next piece may go on, and those before it, should this one not have waited for them. for_each_in_turn() does
    // it at the end of the work; twice is once.
    void pass();

   private:
    Turns& turns_;
    size_t index_;
  };

  // This piece and those behind it shall not have their turn.
  void fail(size_t index);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t next_ = 0;
  size_t failed_ = std::numeric_limits<size_t>::max();
};

// Calls work(0) … work(count - 1), on up to `threads` threads, this one among them; they start in order. After a
// failure no more are started. The failure of the lowest index is returned.
Result<void> for_each_parallel(size_t count, unsigned threads, const std::function<Result<void>(size_t)>& work);
// The same, and each piece has its turn.
Result<void> for_each_in_turn(size_t count, unsigned threads,
                              const std::function<Result<void>(size_t, Turns::Turn&)>& work);

}  // namespace varve::image
