// `check` of a qcow2 image: an independent scan of all its metadata in sequential passes, and the repair of what it
// finds. Reports, counts and rules are qemu-img's (7.2); how it gets there is not:
//
//  - every L2 table is read once, in the order in which the tables lie in the file (check/references.h);
//  - memory is twice the image's refcounts (found and counted, packed as on disk) and a few bytes for every L2 table;
//  - a repair is planned whole before its first write (check/repair_plan.h): what fails on the way changes nothing.
#pragma once

#include <functional>
#include <optional>

#include "check/layout.h"
#include "check/tally.h"

namespace varve::check {

// What a repair changes, as it was planned.
struct RepairSummary {
  uint64_t refcounts_raised = 0;  // clusters
  uint64_t refcounts_lowered = 0;
  uint64_t entries_zeroed = 0;        // of L2 tables and others
  uint64_t structure_bytes = 0;       // of a refcount structure made anew; 0: it is mended in place
  bool snapshot_table = false;        // written anew, or cut
  bool copied_flags = false;          // some are set or cleared
  bool clears_bits = false;           // dirty, corrupt
  std::optional<uint64_t> file_size;  // that the file grows to
};

struct CheckOptions {
  Repair repair = Repair::kNone;
  // L2 tables and snapshot tables done, of all. May be empty.
  std::function<void(uint64_t, uint64_t)> progress = {};
  // Told before the first write of a repair. May be empty.
  std::function<void(const RepairSummary&)> planned = {};
};

// An error: the image can't be opened, or a repair can't be written. A check that ended early is no error here but in
// `tally.error`. As qemu-img does, check again after a repair.
Result<CheckResult> check_image(BlockDevice& device, const CheckOptions& options, const Report& report);

// Reads `device`'s header and bitmaps as check_image will, to tell an image that can't be opened from one that is
// damaged.
Result<Layout> open_layout(BlockDevice& device);

// As open_layout, and with what only a check puts up with: no refcount table, a snapshot table out of all limits. So
// this is QEMU's verdict, in QEMU's words, on an image that something else than a check opens.
Result<Layout> open_layout_for_use(BlockDevice& device);

}  // namespace varve::check
