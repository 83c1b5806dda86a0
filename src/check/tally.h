// What a check found, in qemu-img's numbers.
#pragma once

#include <cstdint>

namespace varve::check {

enum class Repair : uint8_t { kNone, kLeaks, kAll };

struct Tally {
  int64_t corruptions = 0;
  int64_t leaks = 0;
  int64_t check_errors = 0;
  int64_t corruptions_fixed = 0;
  int64_t leaks_fixed = 0;
  int error = 0;  // an errno that ended the check: nothing else counts

  void add(const Tally& other) {
    corruptions += other.corruptions;
    leaks += other.leaks;
    check_errors += other.check_errors;
    corruptions_fixed += other.corruptions_fixed;
    leaks_fixed += other.leaks_fixed;
  }
};

// How the guest's disk lies in the file.
struct Allocation {
  uint64_t image_end = 0;
  uint64_t total = 0;
  uint64_t allocated = 0;
  uint64_t fragmented = 0;
  uint64_t compressed = 0;
};

struct CheckResult {
  Tally tally;
  Allocation allocation;
};

}  // namespace varve::check
