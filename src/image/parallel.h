// The same work on many pieces, by several threads at once.
#pragma once

#include <cstddef>
#include <functional>

#include "base/result.h"

namespace varve::image {

// How many threads long copies are worth: the processors that this process may use, eight at most.
unsigned copy_threads();

// Calls work(0) … work(count - 1), on up to `threads` threads, this one among them; they start in order. After a
// failure no more are started. The failure of the lowest index is returned.
Result<void> for_each_parallel(size_t count, unsigned threads, const std::function<Result<void>(size_t)>& work);

}  // namespace varve::image
