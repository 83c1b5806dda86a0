#include "check/metadata_overlap.h"

#include <algorithm>

#include "base/checked.h"

namespace varve::check {

const char* overlapped_metadata(const Scan& scan, uint64_t offset, uint64_t bytes) {
  const Layout& layout = scan.layout;
  const uint64_t cluster_size = layout.cluster_size();
  if (offset < cluster_size) return "qcow2_header";
  const uint64_t start = align_down(offset, cluster_size);
  const uint64_t end = align_up(offset + bytes, cluster_size);
  const auto overlaps = [&](uint64_t other, uint64_t size) { return size != 0 && start < other + size && other < end; };
  if (overlaps(layout.l1_offset, uint64_t{layout.l1_size} * 8)) return "active L1 table";
  if (overlaps(layout.refcount_table_offset, layout.refcount_table_entries() * 8)) return "refcount table";
  if (overlaps(layout.snapshots_offset, scan.snapshots.table_bytes)) return "snapshot table";
  for (const SnapshotEntry& snapshot : scan.snapshots.entries) {
    if (overlaps(snapshot.l1_offset, uint64_t{snapshot.l1_size} * 8)) return "inactive L1 table";
  }
  if (std::ranges::any_of(scan.blocks, [&](uint64_t entry) {
        return (entry & kBlockOffsetMask) != 0 && overlaps(entry & kBlockOffsetMask, cluster_size);
      })) {
    return "refcount block";
  }
  if (layout.nb_bitmaps != 0 && overlaps(layout.bitmap_directory_offset, layout.bitmap_directory_size)) {
    return "bitmap directory";
  }
  return nullptr;
}

}  // namespace varve::check
