#include "check/repair_summary.h"

#include <algorithm>

namespace varve::check {

Result<RepairSummary> summarize(const RepairPlan& plan, const ImageFile& file, const Layout& layout,
                                const StoredRefcounts& stored) {
  RepairSummary summary;
  summary.entries_zeroed = plan.zeroed.size();
  summary.snapshot_table = plan.nb_snapshots.has_value();
  summary.copied_flags = plan.copied.clears || plan.copied.sets;
  summary.clears_bits = plan.clears_bits && (layout.incompatible & (kIncompatibleDirty | kIncompatibleCorrupt)) != 0;
  summary.file_size = plan.file_size;
  if (plan.structure) {
    const auto blocks = static_cast<uint64_t>(
        std::ranges::count_if(plan.structure->blocks, [](uint64_t offset) { return offset != 0; }));
    summary.structure_bytes = (blocks + plan.structure->table_clusters) * layout.cluster_size();
    return summary;
  }
  if (!plan.changes_refcounts) return summary;
  std::vector<std::byte> block(layout.cluster_size());
  const uint64_t blocks = std::min<uint64_t>(stored.table().size(), stored.counts().blocks());
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t offset = stored.table()[i] & kBlockOffsetMask;
    if (offset == 0 || !stored.is_readable(i * layout.refcounts_per_block())) continue;
    const std::span<const std::byte> wanted = stored.counts().block(i);
    TRY(file.read(offset, block));
    if (std::ranges::equal(block, wanted)) continue;
    with_order(layout.refcount_order, [&](auto order) {
      using Packed = PackedRefcount<order>;
      for (uint64_t c = 0; c < layout.refcounts_per_block(); ++c) {
        const uint64_t before = Packed::get(block.data(), c);
        const uint64_t after = Packed::get(wanted.data(), c);
        if (after > before) ++summary.refcounts_raised;
        if (after < before) ++summary.refcounts_lowered;
      }
    });
  }
  return summary;
}

}  // namespace varve::check
