#include <algorithm>

#include "base/checked.h"
#include "base/endian.h"
#include "check/references.h"
#include "check/table_reader.h"

namespace varve::check {

namespace {

// A distinct L2 table.
struct L2Table {
  uint32_t cluster;
  uint32_t references;  // from L1 tables; the top bit: from the active one, too
};
constexpr uint32_t kActive = uint32_t{1} << 31;

class FastPass {
 public:
  FastPass(Scan& scan, const StoredRefcounts& stored) : s_(scan), stored_(stored) {}

  Result<FastCount> run() {
    const Layout& layout = s_.layout;
    const auto& entries = s_.snapshots.entries;
    if (s_.counts.clusters() >= kActive || !s_.zeroed.empty()) return FastCount{};
    if (layout.has_data_file() && !entries.empty()) return FastCount{};
    if (!TRY(count_l1(layout.l1_offset, layout.l1_size, true))) return FastCount{};
    for (const SnapshotEntry& snapshot : entries) {
      if (!layout.is_aligned(snapshot.l1_offset) || snapshot.l1_size > kMaxL1Bytes / 8) return FastCount{};
      if (!TRY(count_l1(snapshot.l1_offset, snapshot.l1_size, false))) return FastCount{};
    }
    for (const L2Table& table : tables_) {
      if (!add(table.cluster, table.cluster, table.references & ~kActive)) return FastCount{};
    }
    if (!count_whole(0, layout.cluster_size()) || !count_whole(layout.l1_offset, uint64_t{layout.l1_size} * 8)) {
      return FastCount{};
    }
    for (const SnapshotEntry& snapshot : entries) {
      if (!count_whole(snapshot.l1_offset, uint64_t{snapshot.l1_size} * 8)) return FastCount{};
    }
    const bool sound = TRY(with_order(s_.counts.order(), [&](auto order) {
      return layout.has_extended_l2() ? count_l2s<order, 2>() : count_l2s<order, 1>();
    }));
    if (!sound) return FastCount{};
    return FastCount{true, copied_is_wrong_ ? CopiedFlags::kWrong : CopiedFlags::kRight};
  }

 private:
  // A range of metadata that is inside the file.
  bool count_whole(uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return true;
    if (offset + bytes >= s_.file.size() + s_.layout.cluster_size()) return false;
    return add(offset >> s_.layout.cluster_bits, (offset + bytes - 1) >> s_.layout.cluster_bits, 1);
  }

  bool add(uint64_t first, uint64_t last, uint64_t references) {
    if (last >= s_.counts.clusters()) return false;
    for (uint64_t cluster = first; cluster <= last; ++cluster) {
      const uint64_t count = s_.counts.get(cluster);
      if (references > s_.counts.max() || count > s_.counts.max() - references) return false;
      s_.counts.set(cluster, count + references);
    }
    return true;
  }

  Result<bool> count_l1(uint64_t offset, uint64_t size, bool active) {
    constexpr uint64_t kPiece = 1 << 17;
    std::vector<uint32_t> clusters;
    if (offset + size * 8 >= s_.file.size() + s_.layout.cluster_size()) return size == 0;
    for (uint64_t at = 0; at < size; at += kPiece) {
      const Result<std::vector<uint64_t>> l1 = s_.file.read_words(offset + at * 8, std::min(kPiece, size - at));
      if (!l1) return false;
      for (const uint64_t entry : *l1) {
        if (entry == 0) continue;
        const uint64_t l2_offset = entry & kOffsetMask;
        if ((entry & kL1Reserved) != 0 || l2_offset == 0 || !s_.layout.is_aligned(l2_offset)) return false;
        const uint64_t cluster = l2_offset >> s_.layout.cluster_bits;
        if (cluster >= s_.counts.clusters()) return false;
        clusters.push_back(static_cast<uint32_t>(cluster));
        if (!active) continue;
        copied_is_wrong_ |=
            !stored_.is_readable(cluster) || ((entry & kCopied) != 0) != (stored_.counts().get(cluster) == 1);
      }
    }
    if (!std::ranges::is_sorted(clusters)) std::ranges::sort(clusters);
    // Twice in one table: to be counted twice for fragmentation.
    if (active && std::ranges::adjacent_find(clusters) != clusters.end()) return false;
    return merge(clusters, active);
  }

  // Adds one L1 table's references, in ascending order, to those of the others.
  bool merge(std::span<const uint32_t> clusters, bool active) {
    std::vector<L2Table> merged;
    merged.reserve(std::max(tables_.size(), clusters.size()));
    size_t old = 0;
    for (size_t i = 0; i < clusters.size();) {
      while (old < tables_.size() && tables_[old].cluster < clusters[i]) merged.push_back(tables_[old++]);
      const bool known = old < tables_.size() && tables_[old].cluster == clusters[i];
      L2Table table = known ? tables_[old++] : L2Table{clusters[i], active ? kActive : 0};
      for (; i < clusters.size() && clusters[i] == table.cluster; ++i) {
        if ((++table.references & ~kActive) == 0) return false;
      }
      merged.push_back(table);
    }
    merged.insert(merged.end(), tables_.begin() + static_cast<ptrdiff_t>(old), tables_.end());
    tables_ = std::move(merged);
    return true;
  }

  template <unsigned kOrder, unsigned kWords>
  Result<bool> count_l2s() {
    const uint64_t cluster_size = s_.layout.cluster_size();
    TableReader reader(s_.file, s_.layout.cluster_bits, tables_.size(), [&](uint64_t i) { return tables_[i].cluster; });
    const bool has_data_file = s_.layout.has_data_file();
    for (;;) {
      const Result<TableReader::Piece> piece = reader.next();
      if (!piece) return false;  // the exact pass says which
      if (piece->tables.empty()) return true;
      for (uint64_t i = 0; i * cluster_size < piece->tables.size(); ++i) {
        const std::byte* entries = piece->tables.data() + i * cluster_size;
        const L2Table& table = tables_[piece->first + i];
        const uint64_t references = table.references & ~kActive;
        const bool sound = has_data_file                       ? count_external<kWords>(entries)
                           : (table.references & kActive) != 0 ? count_l2<kOrder, kWords, true>(entries, references)
                                                               : count_l2<kOrder, kWords, false>(entries, references);
        if (!sound) return false;
      }
      if (s_.progress) s_.progress(piece->first, tables_.size());
    }
  }

  template <unsigned kWords>
  static bool bitmap_is_sound(const std::byte* entry, bool allocated) {
    if constexpr (kWords == 1) {
      return true;
    } else {
      const auto bitmap = load_be<uint64_t>(entry + 8);
      return allocated ? (bitmap >> 32 & bitmap) == 0 : (bitmap & kSubclustersAllocated) == 0;
    }
  }

  template <unsigned kOrder, unsigned kWords, bool kIsActive>
  bool count_l2(const std::byte* entries, uint64_t references) {
    using Packed = PackedRefcount<kOrder>;
    if (references > Packed::kMax) return false;
    const uint64_t limit = Packed::kMax - references;
    const unsigned cluster_bits = s_.layout.cluster_bits;
    const uint64_t cluster_size = s_.layout.cluster_size();
    const uint64_t clusters = s_.counts.clusters();
    std::byte* const counts = s_.counts.bytes().data();
    const std::byte* const stored = stored_.counts().bytes().data();
    const std::byte* const end = entries + cluster_size;
    uint64_t allocated = 0;
    uint64_t fragmented = 0;
    uint64_t next = 0;
    uint64_t wrong = 0;
    for (const std::byte* at = entries; at < end; at += size_t{kWords} * 8) {
      const auto entry = load_be<uint64_t>(at);
      if ((entry & (kL2Reserved | kCompressedFlag)) != 0) {
        if ((entry & kCompressedFlag) == 0 || !count_compressed<kWords, kIsActive>(at, entry, references)) return false;
        continue;
      }
      const uint64_t offset = entry & kOffsetMask;
      if (offset == 0) {
        // With a zero flag or without one, and whatever COPIED says: not allocated.
        if (!bitmap_is_sound<kWords>(at, false)) return false;
        continue;
      }
      const uint64_t cluster = offset >> cluster_bits;
      if ((offset & (cluster_size - 1)) != 0 || cluster >= clusters || !bitmap_is_sound<kWords>(at, true)) return false;
      const uint64_t count = Packed::get(counts, cluster);
      if (count > limit) return false;
      Packed::set(counts, cluster, count + references);
      if constexpr (kIsActive) {
        ++allocated;
        fragmented += next != 0 && offset != next;
        next = offset + cluster_size;
        wrong |= (entry >> 63) ^ static_cast<uint64_t>(Packed::get(stored, cluster) == 1);
      }
    }
    s_.allocation.allocated += allocated;
    s_.allocation.fragmented += fragmented;
    copied_is_wrong_ |= wrong != 0;
    return true;
  }

  template <unsigned kWords, bool kIsActive>
  bool count_compressed(const std::byte* at, uint64_t entry, uint64_t references) {
    if ((entry & kCopied) != 0) return false;
    if (kWords == 2 && load_be<uint64_t>(at + 8) != 0) return false;
    const Layout::Compressed where = s_.layout.compressed(entry);
    if (where.offset + where.bytes >= s_.file.size() + s_.layout.cluster_size()) return false;
    const unsigned bits = s_.layout.cluster_bits;
    if (!add(where.offset >> bits, (where.offset + where.bytes - 1) >> bits, references)) return false;
    if (kIsActive) {
      ++s_.allocation.allocated;
      ++s_.allocation.compressed;
      ++s_.allocation.fragmented;
    }
    return true;
  }

  // Data that is in another file has no refcounts.
  template <unsigned kWords>
  bool count_external(const std::byte* entries) {
    uint64_t next = 0;
    for (const std::byte* at = entries; at < entries + s_.layout.cluster_size(); at += size_t{kWords} * 8) {
      const auto entry = load_be<uint64_t>(at);
      if ((entry & (kL2Reserved | kCompressedFlag)) != 0) return false;
      const uint64_t offset = entry & kOffsetMask;
      const ClusterKind kind = s_.layout.kind_of(entry);
      const bool allocated = kind == ClusterKind::kNormal || kind == ClusterKind::kZeroAllocated;
      if (!s_.layout.is_aligned(offset) || !bitmap_is_sound<kWords>(at, allocated)) return false;
      if (!allocated) continue;
      ++s_.allocation.allocated;
      s_.allocation.fragmented += next != 0 && offset != next;
      next = offset + s_.layout.cluster_size();
      copied_is_wrong_ |= (entry & kCopied) == 0;
    }
    return true;
  }

  Scan& s_;
  const StoredRefcounts& stored_;
  std::vector<L2Table> tables_;  // ascending
  bool copied_is_wrong_ = false;
};

}  // namespace

Result<FastCount> count_tables_fast(Scan& scan, const StoredRefcounts& stored) {
  if (!stored.all_readable()) return FastCount{};
  return FastPass(scan, stored).run();
}

}  // namespace varve::check
