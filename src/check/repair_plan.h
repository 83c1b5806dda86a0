// What a repair is going to write, and the writing. First everything is found out, then this is filled in, then it is
// carried out, in an order that a crash can't turn into lost data:
//
//   1. refcounts that have to be higher (or all of a new refcount structure, where nothing refers to it yet), a new
//      snapshot table; flush
//   2. the header's pointers to these, in one sector; flush
//   3. entries that become zero, COPIED flags that have to go; flush
//   4. refcounts that have to be lower; flush
//   5. COPIED flags that may be set: their clusters have one reference and, by now, the refcount 1; flush
//   6. the bits in the header that said dirty or corrupt; flush
#pragma once

#include <optional>

#include "check/compare.h"
#include "check/rebuild.h"
#include "check/references.h"

namespace varve::check {

struct RepairPlan {
  std::optional<uint64_t> file_size;  // to grow to
  std::vector<ZeroedEntry> zeroed;
  bool changes_refcounts = false;  // in blocks that stay where they are
  std::optional<NewStructure> structure;
  std::optional<uint32_t> nb_snapshots;  // the header is to say this
  std::optional<uint64_t> snapshots_offset;
  std::vector<std::byte> snapshot_table;
  CopiedChanges copied;
  bool clears_bits = false;  // dirty, corrupt
};

// `stored` holds the refcounts as they shall be. `layout` is the image's as it was read, but for the refcount table.
Result<void> carry_out(const RepairPlan& plan, const ImageFile& file, const Layout& layout,
                       const StoredRefcounts& stored);

}  // namespace varve::check
