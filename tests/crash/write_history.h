// What a guest saw after each of its operations, and what it may therefore see after a power failure: what was flushed
// is there; what was not is there or is what it was before, sector by sector; snapshots are whole.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "crash/disk_state.h"
#include "io/crash_states.h"

namespace varve::test {

class WriteHistory {
 public:
  // The image as it is now; `durable`: it has been flushed.
  void note(std::string what, const FaultControl& control, qcow2::Image& image, bool durable);
  void clear() { steps_.clear(); }
  size_t size() const { return steps_.size(); }

  // A disk after a power failure, as the image on it shows it; and as a raw data file alone shows it.
  void check(const CrashState& state, qcow2::Image& image) const;
  void check_raw(const CrashState& state, MemoryDevice& data) const;
  // A disk on which the first `done` steps behind the beginning have succeeded, and the next one, if any, has failed.
  // Steps are counted, not operations of the disk: discards may fail without harm, and are then not among those
  // recorded.
  void check_after_failure(size_t done, qcow2::Image& image) const;

 private:
  struct Step {
    std::string what;
    uint64_t disk_operations = 0;  // recorded when it had returned
    bool durable = false;          // from then on
    std::vector<std::byte> contents;
    std::vector<PointState> snapshots;
  };
  std::span<const Step> possible(const CrashState& state) const;
  static void check_steps(std::span<const Step> steps, qcow2::Image& image);
  static void check_sectors(const std::vector<std::byte>& contents, std::span<const Step> steps);

  std::vector<Step> steps_;
};

}  // namespace varve::test
