// L1 and L2 entries (qcow2 specification, "Cluster mapping"): the bits, and one decoded L2 entry as a value.
#pragma once

#include <cstdint>

#include "qcow2/header.h"

namespace varve::qcow2 {

inline constexpr uint64_t kEntryCopied = uint64_t{1} << 63;  // refcount of what the entry points to is exactly one
inline constexpr uint64_t kEntryCompressed = uint64_t{1} << 62;
inline constexpr uint64_t kEntryZero = 1;                       // v3, standard entries without extended L2
inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00ull;  // bits 9 to 55, of L1 and standard L2 entries

// Extended L2 entries: bits 0-31 of the second word say which subclusters are allocated, bits 32-63 which read as
// zeroes.
inline constexpr uint64_t kAllSubclusters = 0xffffffff;
// Bits [first, last) of 32.
constexpr uint64_t subcluster_mask(uint64_t first, uint64_t last) {
  return ((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1);
}

enum class ClusterKind : uint8_t { kUnallocated, kZeroPlain, kZeroAllocated, kData, kCompressed };

struct CompressedRange {
  uint64_t offset = 0;  // bytes in the file, any alignment
  uint64_t length = 0;  // bytes, up to the end of the last sector that may hold compressed data
};

// What the decoder of entries needs to know of the header, copied small.
struct EntryFormat {
  explicit EntryFormat(const Header& h)
      : cluster_bits(h.cluster_bits), version(h.version), extended(h.has_extended_l2()), data_file(h.has_data_file()) {}
  EntryFormat() = default;
  uint32_t cluster_bits = 16;
  uint32_t version = 3;
  bool extended = false;
  bool data_file = false;  // data clusters lie in an external data file, at the guest's own offsets

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  uint32_t entry_words() const { return extended ? 2 : 1; }  // 64-bit words per L2 entry

  ClusterKind kind(uint64_t entry) const {
    if ((entry & kEntryCompressed) != 0) return ClusterKind::kCompressed;
    const bool allocated = (entry & kOffsetMask) != 0;
    if (!extended && version >= 3 && (entry & kEntryZero) != 0)
      return allocated ? ClusterKind::kZeroAllocated : ClusterKind::kZeroPlain;
    // In an external data file, offset 0 is a place like others: there COPIED says that it is meant.
    if (data_file && (entry & kEntryCopied) != 0) return ClusterKind::kData;
    return allocated ? ClusterKind::kData : ClusterKind::kUnallocated;
  }

  // Specification, "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8) bits of offset, then sectors less one.
  CompressedRange compressed_range(uint64_t entry) const {
    const uint32_t offset_bits = 62 - (cluster_bits - 8);
    const uint64_t offset = entry & ((uint64_t{1} << offset_bits) - 1);
    const uint64_t sectors = ((entry & ~(kEntryCopied | kEntryCompressed)) >> offset_bits) + 1;
    return {offset, sectors * 512 - (offset & 511)};
  }
};

}  // namespace varve::qcow2
