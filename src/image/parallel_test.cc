#include "image/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

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

TEST(ForEachInTurn, TakesTurnsInOrder) {
  std::vector<size_t> order;
  ASSERT_TRUE(for_each_in_turn(2000, 4, [&](size_t i, Turns::Turn& turn) -> Result<void> {
    if (i % 7 == 0) return {};
    TRY(turn.wait());
    order.push_back(i);
    if (i % 3 == 0) turn.pass();
    return {};
  }));
  EXPECT_TRUE(std::ranges::is_sorted(order));
  EXPECT_EQ(order.size(), 2000u - 286u);
}

TEST(ForEachInTurn, AFailureStopsThoseBehindItAndNotThoseBefore) {
  for (int round = 0; round < 50; ++round) {
    std::array<bool, 40> done{};
    const Result<void> all = for_each_in_turn(done.size(), 4, [&](size_t i, Turns::Turn& turn) -> Result<void> {
      if (i == 20) return make_error(ErrorKind::kIo, "20");  // before those in front of it have had their turns
      TRY(turn.wait());
      done.at(i) = true;
      return {};
    });
    ASSERT_FALSE(all);
    EXPECT_EQ(all.error().message, "20");
    for (size_t i = 0; i < done.size(); ++i) EXPECT_EQ(done.at(i), i < 20) << i;
  }
}

TEST(ForEachInTurn, WhoPassesWithoutWaitingHoldsNobodyUp) {
  std::atomic<int> done = 0;
  ASSERT_TRUE(for_each_in_turn(1000, 4, [&](size_t, Turns::Turn& turn) -> Result<void> {
    turn.pass();
    ++done;
    return {};
  }));
  EXPECT_EQ(done, 1000);
}

TEST(ForEachParallel, OfNothingIsDone) {
  EXPECT_TRUE(for_each_parallel(0, 4, [](size_t) -> Result<void> { return make_error(ErrorKind::kIo, "called"); }));
}

}  // namespace
}  // namespace varve::image
