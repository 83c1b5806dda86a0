// What disks may hold after a power failure. Between two flushes a disk may keep any of the writes that it was given,
// in any order, and of a write any of its sectors; what was written before a completed flush it holds. A sector of 512
// bytes is written whole or not at all.
//
//   FaultControl& control = …;  // a recorded run (io/fault_device.h)
//   for_each_crash_state(control, {}, [&](CrashState& state) {
//     SCOPED_TRACE(state.description);
//     check(state.disks[0]);      // a disk of its own: open it, repair it, write to it
//     return !testing::Test::HasFatalFailure();
//   });
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/fault_device.h"

namespace varve {

struct CrashOptions {
  // Where so many operations or fewer are unflushed: all their subsets, and each in every order that makes a
  // difference. Only operations that overlap do, so only these change places; never a change of size, whose order a
  // file system keeps. Where more are unflushed, the options below choose.
  size_t all_subsets_up_to = 8;
  bool each_missing = true;    // all of the unflushed operations but one, for each one
  bool each_alone = true;      // one of them only, for each one
  bool torn = true;            // the last one in parts: first and last sectors, halves, random sectors
  unsigned random_states = 4;  // at each moment: random subsets, orders and tearings
  uint64_t seed = 1;
};

struct CrashState {
  std::vector<std::shared_ptr<MemoryDevice>> disks;  // in the order of FaultControl::records()
  uint64_t completed = 0;                            // operations that had returned, on all disks
  size_t marks_passed = 0;                           // how many of FaultControl::mark()'s moments lay before
  std::string description;                           // for the message of a test that fails
};

// Calls `visit` with every state that the options ask for, at each moment of the run: before the first operation, after
// each one, and on both sides of each mark. Of the unflushed operations always none and all; the rest is up to the
// options. With several disks, the one that the last operation went to takes all its variations while the others have
// none, and all, of their unflushed operations; the random states vary all of them. No state comes twice between two
// marks. The same run, options and seed give the same states.
// Ends early when `visit` returns false. The number of states visited.
size_t for_each_crash_state(const FaultControl& control, const CrashOptions& options,
                            const std::function<bool(CrashState&)>& visit);

}  // namespace varve
