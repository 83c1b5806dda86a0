#include "qcow2/mapping.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "qcow2/corruption.h"
#include "qcow2/padded_read.h"

namespace varve::qcow2 {

Result<Mapping> Mapping::open(BlockDevice& file, const EntryFormat& format, uint64_t l1_table_offset,
                              uint32_t l1_size) {
  Mapping m(file, format);
  m.l2_bits_ = static_cast<uint32_t>(std::countr_zero(m.entries_per_table()));
  std::vector<be64> raw(l1_size);
  TRY(read_padded(file, l1_table_offset, std::as_writable_bytes(std::span(raw))));
  m.l1_.assign(raw.begin(), raw.end());
  return m;
}

Result<uint64_t> Mapping::table_offset(uint64_t index) const {
  const uint64_t entry = l1_[index];
  const uint64_t offset = entry & ~kEntryCopied;
  if ((entry & ~(kEntryCopied | kOffsetMask)) != 0 || offset % format_.cluster_size() != 0)
    return corruption(file_->name(), offset,
                      fmt::format("L1 entry {} ({:#x}) is misaligned or has reserved bits set", index, entry));
  return offset;
}

Result<L2Table*> Mapping::table(uint64_t index) {
  if (const auto it = tables_.find(index); it != tables_.end()) return it->second.get();
  const uint64_t offset = TRY(table_offset(index));
  if (offset == 0) return nullptr;
  const uint64_t file_size = TRY(file_->size());
  if (offset >= file_size)
    return corruption(
        file_->name(), offset,
        fmt::format("L2 table {} at offset {:#x} lies outside of the file of {} bytes", index, offset, file_size));
  L2Table t;
  t.host_offset = offset;
  t.words.resize(format_.cluster_size() / 8);
  TRY(read_padded(*file_, offset, std::as_writable_bytes(std::span(t.words))));
  return put(index, std::move(t));
}

L2Table* Mapping::put(uint64_t index, L2Table table) {
  auto& slot = tables_[index];
  if (!slot) order_.push_back(index);
  slot = std::make_unique<L2Table>(std::move(table));
  return slot.get();
}

void Mapping::trim(size_t max_bytes) {
  size_t looked_at = 0;
  const size_t all = order_.size();
  while (cached_bytes() > max_bytes && looked_at++ < all) {
    const uint64_t index = order_.front();
    order_.pop_front();
    if (tables_.at(index)->dirty)
      order_.push_back(index);
    else
      tables_.erase(index);
  }
}

MappedRun Mapping::classify(const L2Table& table, uint64_t index, uint64_t in_cluster) const {
  using Kind = MappedRun::Kind;
  const uint64_t entry = table.entry(format_, index);
  const uint64_t rest = format_.cluster_size() - in_cluster;
  switch (format_.kind(entry)) {
    case ClusterKind::kCompressed:
      return {Kind::kCompressed, rest, 0, entry};
    case ClusterKind::kZeroPlain:
      return {Kind::kZero, rest, 0, 0};
    case ClusterKind::kZeroAllocated:
      return {Kind::kZero, rest, (entry & kOffsetMask) + in_cluster, 0, true};
    default:
      break;
  }
  const uint64_t host = entry & kOffsetMask;
  const bool placed = format_.kind(entry) == ClusterKind::kData;
  if (format_.version < 3 && (entry & kEntryZero) != 0) return {Kind::kInvalid, rest, 0, 0};  // unknown to version 2
  if (!format_.extended)
    return !placed ? MappedRun{Kind::kUnallocated, rest, 0, 0}
                   : MappedRun{Kind::kData, rest, host + in_cluster, 0, true};
  // Specification, "Extended L2 Entries": bits 0-31 say that a subcluster is allocated, bits 32-63 that it reads as
  // zero.
  const uint64_t bitmap = table.bitmap(index);
  // What is allocated does not read as zero, and needs a cluster.
  const uint64_t allocated = bitmap & 0xffffffff;
  if ((allocated & bitmap >> 32) != 0 || (allocated != 0 && !placed)) return {Kind::kInvalid, rest, 0, 0};
  const uint64_t subcluster = format_.cluster_size() / 32;
  const auto kind_at = [&](uint64_t s) {
    if ((bitmap >> (32 + s) & 1) != 0) return Kind::kZero;
    return (bitmap >> s & 1) != 0 ? Kind::kData : Kind::kUnallocated;
  };
  const uint64_t first = in_cluster / subcluster;
  const Kind kind = kind_at(first);
  uint64_t last = first;
  while (last + 1 < 32 && kind_at(last + 1) == kind) ++last;
  return {kind, (last + 1) * subcluster - in_cluster, placed ? host + in_cluster : 0, 0, placed};
}

Result<void> Mapping::check(const MappedRun& run, uint64_t guest_offset) const {
  if (run.kind == MappedRun::Kind::kInvalid)
    return corruption(
        file_->name(), tables_.at(l1_index(guest_offset))->host_offset,
        fmt::format("the L2 entry of guest offset {:#x} has bits that contradict each other or its version",
                    guest_offset));
  if (format_.data_file) {
    if (run.kind == MappedRun::Kind::kCompressed)
      return corruption(
          file_->name(), run.compressed_entry,
          fmt::format("guest offset {:#x} has a compressed cluster, in an image with an external data file",
                      guest_offset));
    if (run.has_place && run.host_offset != guest_offset)
      return corruption(file_->name(), run.host_offset,
                        fmt::format("guest offset {:#x} is mapped to offset {:#x} of the external data file",
                                    guest_offset, run.host_offset));
    return {};
  }
  if (run.kind != MappedRun::Kind::kData) return {};
  const uint64_t in_cluster = guest_offset & (format_.cluster_size() - 1);
  const uint64_t cluster = run.host_offset - in_cluster;
  if (cluster == 0 || cluster % format_.cluster_size() != 0)
    return corruption(file_->name(), cluster,
                      fmt::format("guest offset {:#x} is mapped to offset {:#x}, which is not a data cluster",
                                  guest_offset, cluster));
  return {};
}

// Of what lookup() joins, what can be told by comparing entries, whole clusters at a time: data that goes on in the
// file, and entries that say the same. `run` has been checked, and what is added needs no check then.
void Mapping::extend(MappedRun& run, const L2Table& table, uint64_t guest_offset, uint64_t max_length) const {
  using Kind = MappedRun::Kind;
  const uint64_t cluster_size = format_.cluster_size();
  if (format_.extended || (guest_offset + run.length) % cluster_size != 0) return;
  const bool is_data = run.kind == Kind::kData;
  if (!is_data && (run.has_place || run.kind == Kind::kCompressed)) return;
  const uint64_t compared = is_data ? ~kEntryCopied : ~uint64_t{0};
  const uint64_t step = is_data ? cluster_size : 0;
  uint64_t index = l2_index(guest_offset);
  uint64_t expected = table.entry(format_, index) & compared;
  while (run.length < max_length && ++index < entries_per_table()) {
    expected += step;
    if ((expected & kOffsetMask) < step) return;  // no offset has so many bits
    if ((table.entry(format_, index) & compared) != expected) return;
    run.length += cluster_size;
  }
}

Result<MappedRun> Mapping::lookup(uint64_t guest_offset, uint64_t max_length, RunJoin join) {
  using Kind = MappedRun::Kind;
  const uint64_t l1 = l1_index(guest_offset);
  const uint64_t table_bytes = entries_per_table() << format_.cluster_bits;
  const uint64_t in_table = guest_offset & (table_bytes - 1);
  L2Table* t = l1 < l1_.size() ? TRY(table(l1)) : nullptr;
  if (t == nullptr) return MappedRun{Kind::kUnallocated, std::min(max_length, table_bytes - in_table), 0, 0};
  uint64_t index = l2_index(guest_offset);
  MappedRun run = classify(*t, index, guest_offset & (format_.cluster_size() - 1));
  TRY(check(run, guest_offset));
  extend(run, *t, guest_offset, max_length);
  // Join what follows while it is of the same kind and, for data, next to it in the file. (Compressed: one cluster.)
  while (run.length < max_length && run.kind != Kind::kCompressed) {
    const uint64_t next_guest = guest_offset + run.length;
    const uint64_t next_index = l2_index(next_guest);
    const uint64_t in_cluster = next_guest & (format_.cluster_size() - 1);
    if (in_cluster == 0 && next_index == 0) break;  // the table ends here
    index = next_index;
    const MappedRun next = classify(*t, index, in_cluster);
    if (next.kind != run.kind) break;
    const bool by_place = join == RunJoin::kByPlace && (run.has_place || next.has_place);
    if (run.kind == Kind::kData || by_place) {
      if (next.has_place != run.has_place) break;
      if (next.host_offset != run.host_offset + run.length) break;
      if (!check(next, next_guest)) break;
    }
    run.length += next.length;
  }
  run.length = std::min(run.length, max_length);
  return run;
}

}  // namespace varve::qcow2
