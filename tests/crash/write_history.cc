#include "crash/write_history.h"

#include <algorithm>
#include <cstring>

namespace varve::test {

namespace {

constexpr uint64_t kSector = 512;

}  // namespace

void WriteHistory::note(std::string what, const FaultControl& control, qcow2::Image& image, bool durable) {
  Step step{std::move(what), control.recorded_operations(), durable, whole_contents(image), {}};
  auto state = state_of(image);
  ASSERT_TRUE(state) << state.error().message;
  step.snapshots = std::move(state->snapshots);
  steps_.push_back(std::move(step));
}

// Which steps may show after a power failure: from the last durable one to the one under way.
std::span<const WriteHistory::Step> WriteHistory::possible(const CrashState& state) const {
  size_t first = 0;
  size_t last = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].disk_operations > state.completed) {
      last = i;
      break;
    }
    if (steps_[i].durable) first = i;
    last = i;
  }
  return std::span(steps_).subspan(first, last - first + 1);
}

void WriteHistory::check(const CrashState& state, qcow2::Image& image) const {
  check_steps(possible(state), image);
}

void WriteHistory::check_after_failure(size_t done, qcow2::Image& image) const {
  ASSERT_LT(done, steps_.size());
  size_t first = done;
  while (first > 0 && !steps_[first].durable) --first;
  check_steps(std::span(steps_).subspan(first, std::min(done + 2, steps_.size()) - first), image);
}

void WriteHistory::check_steps(std::span<const Step> steps, qcow2::Image& image) {
  const auto now = state_of(image);
  ASSERT_TRUE(now) << now.error().message;
  const auto same_snapshots = [&](const Step& s) { return s.snapshots == now->snapshots; };
  ASSERT_TRUE(std::any_of(steps.begin(), steps.end(), same_snapshots)) << *now;
  check_sectors(whole_contents(image), steps);
}

void WriteHistory::check_raw(const CrashState& state, MemoryDevice& data) const {
  check_sectors(whole_contents(data), possible(state));
}

void WriteHistory::check_sectors(const std::vector<std::byte>& contents, std::span<const Step> steps) {
  ASSERT_EQ(contents.size(), steps.front().contents.size());
  for (size_t at = 0; at < contents.size(); at += kSector) {
    const auto same_sector = [&](const Step& s) {
      return std::memcmp(&s.contents[at], &contents[at], std::min(kSector, contents.size() - at)) == 0;
    };
    if (std::any_of(steps.rbegin(), steps.rend(), same_sector)) continue;
    std::string between;
    for (const Step& s : steps) between += "\n  " + s.what;
    FAIL() << "the sector at " << at << " holds what it never held between these steps:" << between;
  }
}

}  // namespace varve::test
