// Counts the references of an image: how often header, tables and data use each cluster. Two ways to the same numbers:
//
//  - the fast one, for images whose tables are sound: every L2 table is read once, however many snapshots share it, in
//    the order in which the tables lie in the file, while another thread reads the next ones. It says nothing, and
//    gives up where an entry is not as it should be;
//  - the exact one, which visits what QEMU visits in QEMU's order, and reports as QEMU does.
#pragma once

#include <unordered_set>

#include "check/layout.h"
#include "check/refcount_array.h"
#include "check/snapshot_entries.h"
#include "check/stored_refcounts.h"
#include "check/tally.h"

namespace varve::check {

// An L2 entry that names no usable cluster and holds no data: a repair makes it a plain zero.
struct ZeroedEntry {
  uint64_t offset;  // of the entry in the file
  uint64_t entry;   // what it becomes
  uint64_t bitmap;  // with extended L2
};

struct Scan {
  ImageFile& file;
  Layout& layout;
  const SnapshotEntries& snapshots;
  const Report& report;
  Repair repair;
  Tally& tally;
  Allocation& allocation;
  RefcountArray& counts;
  std::vector<uint64_t> blocks;  // the refcount table's entries
  std::vector<ZeroedEntry>& zeroed;
  std::unordered_set<uint64_t>& zeroed_offsets;
  std::function<void(uint64_t, uint64_t)> progress = {};  // done, total; may be empty
};

// Adds a range to the counts, and reports what lies behind the end of the file, or what can't be counted.
void count_range(Scan& scan, uint64_t offset, uint64_t bytes);

enum class CopiedFlags : uint8_t { kUnknown, kRight, kWrong };

struct FastCount {
  bool is_sound = false;  // else counts and allocation are to be thrown away
  // Of the active tables, against the refcounts in the image.
  CopiedFlags copied = CopiedFlags::kUnknown;
};
Result<FastCount> count_tables_fast(Scan& scan, const StoredRefcounts& stored);

// Header, L1 and L2 tables, data. False: the check ends here (tally.error).
bool count_tables_exactly(Scan& scan);
// The snapshot table, the refcount table, the LUKS header, the bitmaps. As above.
bool count_other_metadata(Scan& scan);

}  // namespace varve::check
