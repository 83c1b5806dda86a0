// Holds what was counted against what the image says: refcounts, the places of refcount blocks, COPIED flags.
#pragma once

#include "check/references.h"

namespace varve::check {

// Counts the refcount blocks, and finds those that are no good. Sets `rebuild` where the refcount structure can't be
// mended in place. With Repair::kAll, a block outside of the file becomes a reason to let the file grow (the plan does
// that: `scan.file` gets its future size).
void check_blocks(Scan& scan, StoredRefcounts& stored, bool& rebuild);

struct Comparison {
  bool rebuild = false;
  uint64_t highest_cluster = 0;
};
// With a repair, `stored` gets the right refcounts: those that the plan will write.
Comparison compare_refcounts(Scan& scan, StoredRefcounts& stored, Repair repair);

struct CopiedChanges {
  bool clears = false;
  bool sets = false;
};
// The active tables' COPIED flags against `stored`. What it reports as repaired, write_copied_flags() will write.
// False: the check ends here (tally.error).
bool check_copied_flags(Scan& scan, const StoredRefcounts& stored, bool repair, CopiedChanges& changes);

enum class CopiedWrite : uint8_t { kClear, kSet };
Result<void> write_copied_flags(const ImageFile& file, const Layout& layout, const StoredRefcounts& stored,
                                CopiedWrite which);

}  // namespace varve::check
