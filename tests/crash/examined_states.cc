#include "crash/examined_states.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "support/sanitizer.h"

namespace varve::test {
namespace {

class Counter final : public testing::EmptyTestEventListener {
 public:
  // The counter of this process; gtest owns it.
  static Counter& the() {
    static Counter* const counter = [] {
      auto* made = new Counter;
      testing::UnitTest::GetInstance()->listeners().Append(made);
      return made;
    }();
    return *counter;
  }
  void add(size_t states) { states_ += states; }

 private:
  void OnTestStart(const testing::TestInfo&) override { states_ = 0; }
  void OnTestEnd(const testing::TestInfo&) override {
    if (states_ == 0) return;
    testing::Test::RecordProperty("states_examined", std::to_string(states_));
    std::printf("states examined: %zu\n", states_);
  }

  size_t states_ = 0;
};

// Before the first test begins: a listener that is added in the middle of one misses its end.
[[maybe_unused]] const Counter& made_at_start = Counter::the();

}  // namespace

void count_examined_states(size_t states) {
  Counter::the().add(states);
}

size_t examine_crash_states(const FaultControl& control, CrashOptions options,
                            const std::function<bool(CrashState&)>& visit) {
  if (kSanitized) {
    options.all_subsets_up_to = std::min(options.all_subsets_up_to, size_t{3});
    options.random_states = std::min(options.random_states, 1u);
    if (control.recorded_operations() > 60) options.torn = false;
  }
  const size_t states = for_each_crash_state(control, options, visit);
  count_examined_states(states);
  return states;
}

}  // namespace varve::test
