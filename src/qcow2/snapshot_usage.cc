// What a snapshot holds, and what of it only it holds: its removal, tried out on the refcounts in memory.
#include "base/checked.h"
#include "qcow2/image_state.h"
#include "qcow2/table_pass.h"

namespace varve::qcow2 {

Result<SnapshotUsage> Image::snapshot_usage(size_t index) {
  CHECK(index < state_->snapshots.size());
  if (state_->writer) TRY(flush());
  State& s = *state_;
  const Snapshot& snapshot = s.snapshots[index];
  if (snapshot.fault && !snapshot.fault->table_is_known) return fault_of(name(), s.header, snapshot);
  const EntryFormat format(s.header);
  const uint64_t cluster_size = s.header.cluster_size();
  const uint64_t l1_clusters = div_round_up(uint64_t{snapshot.l1_size} * 8, cluster_size);

  Refcounts refcounts = TRY(Refcounts::open(*s.file, s.header));
  TRY(refcounts.load_all());
  const ClusterSet before = refcounts.used_clusters();
  const Mapping mapping = TRY(Mapping::open(*s.file, format, snapshot.l1_table_offset, snapshot.l1_size));
  const auto references = TRY(table_references(mapping.l1(), format, name()));
  TablePass pass(*s.file, format, refcounts);
  TableTotals totals;
  TRY(pass.drop_references(references, &totals));
  for (const TableReference& r : references) TRY(refcounts.decrement(r.host_offset / cluster_size, 1));
  if (l1_clusters != 0) TRY(refcounts.decrement(snapshot.l1_table_offset / cluster_size, l1_clusters));

  SnapshotUsage usage;
  usage.referenced_bytes =
      (totals.data_clusters + references.size() + l1_clusters) * cluster_size + totals.compressed_bytes;
  const ClusterSet after = refcounts.used_clusters();
  before.for_each_word([&](uint64_t w, uint64_t bits) {
    usage.exclusive_bytes += static_cast<uint64_t>(__builtin_popcountll(bits & ~after.word(w))) * cluster_size;
  });
  return usage;
}

}  // namespace varve::qcow2
