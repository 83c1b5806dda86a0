#include "image/parallel.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>

namespace varve::image {
namespace {

TEST(ForEachParallel, DoesEveryPieceOnce) {
  std::array<std::atomic<int>, 1000> times{};
  ASSERT_TRUE(for_each_parallel(times.size(), 4, [&](size_t i) -> Result<void> {
    ++times.at(i);
    return {};
  }));
  for (const auto& t : times) EXPECT_EQ(t, 1);
}

TEST(ForEachParallel, StartsNothingAfterAFailureAndReturnsTheFirst) {
  std::atomic<size_t> highest = 0;
  const Result<void> done = for_each_parallel(100000, 3, [&](size_t i) -> Result<void> {
    size_t before = highest;
    while (before < i && !highest.compare_exchange_weak(before, i)) {
    }
    if (i >= 10) return make_error(ErrorKind::kIo, std::to_string(i));
    return {};
  });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "10");
  EXPECT_LT(highest, 20u);
}

TEST(ForEachParallel, OfNothingIsDone) {
  EXPECT_TRUE(for_each_parallel(0, 4, [](size_t) -> Result<void> { return make_error(ErrorKind::kIo, "called"); }));
}

}  // namespace
}  // namespace varve::image
