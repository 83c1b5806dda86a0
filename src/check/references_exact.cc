#include <fmt/format.h>

#include <cerrno>

#include "base/checked.h"
#include "base/endian.h"
#include "check/bitmaps.h"
#include "check/metadata_overlap.h"
#include "check/references.h"

namespace varve::check {

namespace {

class ExactCount {
 public:
  explicit ExactCount(Scan& scan) : s_(scan), table_(scan.layout.cluster_size()) {}

  bool run() {
    count_range(s_, 0, s_.layout.cluster_size());
    if (!count_l1(s_.layout.l1_offset, s_.layout.l1_size, true)) return false;
    const auto& entries = s_.snapshots.entries;
    if (s_.layout.has_data_file() && !entries.empty()) {
      corruption(fmt::format("ERROR {} snapshots in image with data file", entries.size()));
    }
    for (const SnapshotEntry& snapshot : entries) {
      if (!s_.layout.is_aligned(snapshot.l1_offset)) {
        corruption(
            fmt::format("ERROR snapshot {} ({}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot "
                        "table entry corrupted",
                        snapshot.id, snapshot.name, snapshot.l1_offset));
      } else if (snapshot.l1_size > kMaxL1Bytes / 8) {
        corruption(
            fmt::format("ERROR snapshot {} ({}) l1_size={:#x}: L1 table is too large; snapshot table entry "
                        "corrupted",
                        snapshot.id, snapshot.name, snapshot.l1_size));
      } else if (!count_l1(snapshot.l1_offset, snapshot.l1_size, false)) {
        return false;
      }
    }
    return true;
  }

 private:
  void corruption(const std::string& text) {
    s_.report.line(text);
    ++s_.tally.corruptions;
  }
  bool ends(const std::string& text) {
    s_.report.line(text);
    ++s_.tally.check_errors;
    s_.tally.error = EIO;
    return false;
  }

  bool count_l1(uint64_t offset, uint64_t size, bool active) {
    if (size == 0) return true;
    count_range(s_, offset, size * 8);
    const Result<std::vector<uint64_t>> l1 = s_.file.read_words_inside(offset, size);
    if (!l1) return ends("ERROR: I/O error in check_refcounts_l1");
    for (const uint64_t entry : *l1) {
      if (entry == 0) continue;
      if ((entry & kL1Reserved) != 0) {
        corruption(fmt::format("ERROR found L1 entry with reserved bits set: {:x}", entry));
      }
      const uint64_t l2_offset = entry & kOffsetMask;
      count_range(s_, l2_offset, s_.layout.cluster_size());
      if (!s_.layout.is_aligned(l2_offset)) {
        corruption(fmt::format("ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted", l2_offset));
      }
      if (!count_l2(l2_offset, active)) return false;
    }
    return true;
  }

  bool count_l2(uint64_t l2_offset, bool active) {
    if (!s_.file.read(l2_offset, table_)) return ends("ERROR: I/O error in check_refcounts_l2");
    next_ = 0;
    const uint64_t entry_bytes = s_.layout.l2_entry_bytes();
    for (uint64_t i = 0; i < s_.layout.l2_entries(); ++i) {
      const uint64_t entry = load_be<uint64_t>(&table_[i * entry_bytes]);
      const uint64_t bitmap = entry_bytes == 16 ? load_be<uint64_t>(&table_[i * entry_bytes + 8]) : 0;
      const uint64_t at = l2_offset + i * entry_bytes;
      if (!s_.zeroed_offsets.empty() && s_.zeroed_offsets.contains(at)) continue;
      if (!count_entry(i, at, entry, bitmap, active)) return false;
    }
    return true;
  }

  bool count_entry(uint64_t index, uint64_t at, uint64_t entry, uint64_t bitmap, bool active) {
    const ClusterKind kind = s_.layout.kind_of(entry);
    if (kind != ClusterKind::kCompressed && (entry & kL2Reserved) != 0) {
      corruption(fmt::format("ERROR found l2 entry with reserved bits set: {:x}", entry));
    }
    switch (kind) {
      case ClusterKind::kCompressed:
        count_compressed(index, entry, bitmap, active);
        return true;
      case ClusterKind::kNormal:
      case ClusterKind::kZeroAllocated:
        return count_standard(at, entry, bitmap, active);
      case ClusterKind::kUnallocated:
        if ((bitmap & kSubclustersAllocated) != 0) {
          corruption("ERROR: Unallocated cluster has non-zero subcluster allocation map");
        }
        return true;
      case ClusterKind::kZeroPlain:
        return true;
    }
    return true;
  }

  void count_compressed(uint64_t index, uint64_t entry, uint64_t bitmap, bool active) {
    const uint64_t offset_bits = (uint64_t{1} << (62 - (s_.layout.cluster_bits - 8))) - 1;
    if ((entry & kCopied) != 0) {
      corruption(fmt::format("ERROR: coffset=0x{:x}: copied flag must never be set for compressed clusters",
                             entry & offset_bits));
      entry &= ~kCopied;
    }
    if (s_.layout.has_data_file()) {
      corruption(fmt::format("ERROR compressed cluster {} with data file, entry=0x{:x}", index, entry));
      return;
    }
    if (bitmap != 0) {
      corruption(fmt::format("ERROR compressed cluster {} with non-zero subcluster allocation bitmap, entry=0x{:x}",
                             index, entry));
      return;
    }
    const Layout::Compressed where = s_.layout.compressed(entry);
    count_range(s_, where.offset, where.bytes);
    if (active) {
      ++s_.allocation.allocated;
      ++s_.allocation.compressed;
      ++s_.allocation.fragmented;
    }
  }

  bool count_standard(uint64_t at, uint64_t entry, uint64_t bitmap, bool active) {
    const uint64_t offset = entry & kOffsetMask;
    if ((bitmap >> 32 & bitmap) != 0) {
      corruption(
          fmt::format("ERROR offset={:x}: Allocated cluster has corrupted subcluster allocation bitmap", offset));
    }
    if (!s_.layout.is_aligned(offset)) {
      const bool has_data = s_.layout.has_extended_l2() ? (bitmap & kSubclustersAllocated) != 0 : (entry & kZero) == 0;
      if (has_data) {
        corruption(fmt::format("ERROR offset={:x}: Data cluster is not properly aligned; L2 entry corrupted.", offset));
      } else {
        const bool repairs = s_.repair == Repair::kAll;
        corruption(fmt::format("{} offset={:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.",
                               repairs ? "Repairing" : "ERROR", offset));
        if (repairs) return zero(at, bitmap);
      }
    }
    if (active) {
      ++s_.allocation.allocated;
      if (next_ != 0 && offset != next_) ++s_.allocation.fragmented;
      next_ = offset + s_.layout.cluster_size();
    }
    if (!s_.layout.has_data_file()) count_range(s_, offset, s_.layout.cluster_size());
    return true;
  }

  // Plans that the entry becomes a zero. Tables that overlap other metadata are left alone: writing to them would break
  // what is there.
  bool zero(uint64_t at, uint64_t bitmap) {
    if (const char* other = overlapped_metadata(s_, at, s_.layout.l2_entry_bytes())) {
      s_.report.line(
          fmt::format("qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps "
                      "with {}); further corruption events will be suppressed",
                      other));
      return ends("ERROR: Overlap check failed");
    }
    const bool extended = s_.layout.has_extended_l2();
    s_.zeroed.push_back({at, extended ? 0 : kZero, (bitmap | bitmap << 32) & ~kSubclustersAllocated});
    s_.zeroed_offsets.insert(at);
    --s_.tally.corruptions;
    ++s_.tally.corruptions_fixed;
    return true;
  }

  Scan& s_;
  std::vector<std::byte> table_;
  uint64_t next_ = 0;  // where the next cluster would lie if the disk lay in one piece
};

}  // namespace

void count_range(Scan& scan, uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t cluster_size = scan.layout.cluster_size();
  // The last cluster of a file may be there in part.
  if (offset + bytes >= scan.file.size() + cluster_size) {
    scan.report.line(
        fmt::format("ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
                    "offset 0x{:x} size 0x{:x}",
                    offset, bytes));
    ++scan.tally.corruptions;
    return;
  }
  const uint64_t last = (offset + bytes - 1) >> scan.layout.cluster_bits;
  for (uint64_t cluster = offset >> scan.layout.cluster_bits; cluster <= last; ++cluster) {
    if (cluster >= scan.counts.clusters()) scan.counts.grow(cluster + 1);
    const uint64_t count = scan.counts.get(cluster);
    if (count < scan.counts.max()) {
      scan.counts.set(cluster, count + 1);
      continue;
    }
    scan.report.line(fmt::format("ERROR: overflow cluster offset=0x{:x}", cluster << scan.layout.cluster_bits));
    scan.report.line(
        "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the "
        "image cannot be opened for writing");
    ++scan.tally.corruptions;
  }
}

bool count_tables_exactly(Scan& scan) {
  return ExactCount(scan).run();
}

bool count_other_metadata(Scan& scan) {
  const Layout& layout = scan.layout;
  count_range(scan, layout.snapshots_offset, scan.snapshots.table_bytes);
  count_range(scan, layout.refcount_table_offset, layout.refcount_table_entries() * 8);
  count_range(scan, layout.crypto_offset, layout.crypto_length);
  return count_bitmaps(scan);
}

}  // namespace varve::check
