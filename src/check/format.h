// The fields of qcow2 that the scanner needs, defined a second time on purpose: a wrong idea of the format in src/qcow2
// must not hide itself from the check (docs/interop/qcow2.txt of QEMU is the specification).
#pragma once

#include <cstdint>

namespace varve::check {

// Header fields that a repair changes; all of them lie in the first sector.
inline constexpr uint64_t kFieldRefcountTable = 48;  // offset (8), clusters (4), snapshots (4), snapshot table (8)
inline constexpr uint64_t kFieldSnapshots = 60;
inline constexpr uint64_t kFieldIncompatible = 72;
inline constexpr uint64_t kFieldAutoclear = 88;

inline constexpr uint64_t kIncompatibleDirty = 1u << 0;
inline constexpr uint64_t kIncompatibleCorrupt = 1u << 1;
inline constexpr uint64_t kIncompatibleDataFile = 1u << 2;
inline constexpr uint64_t kIncompatibleCompression = 1u << 3;
inline constexpr uint64_t kIncompatibleExtendedL2 = 1u << 4;
inline constexpr uint64_t kIncompatibleKnown = 0x1f;
inline constexpr uint64_t kAutoclearBitmaps = 1u << 0;
inline constexpr uint64_t kAutoclearKnown = 3;

// L1 and L2 entries.
inline constexpr uint64_t kCopied = uint64_t{1} << 63;
inline constexpr uint64_t kCompressedFlag = uint64_t{1} << 62;
inline constexpr uint64_t kZero = 1;
inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
inline constexpr uint64_t kL1Reserved = 0x7f000000000001ff;
inline constexpr uint64_t kL2Reserved = 0x3f000000000001fe;
// Entries of the refcount table.
inline constexpr uint64_t kBlockReserved = 0x1ff;
inline constexpr uint64_t kBlockOffsetMask = ~kBlockReserved;
// The second word of an extended L2 entry.
inline constexpr uint64_t kSubclustersAllocated = 0xffffffff;

inline constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = uint64_t{8} << 20;
inline constexpr uint32_t kMaxSnapshots = 65536;
inline constexpr uint64_t kSnapshotHeaderBytes = 40;
inline constexpr uint64_t kMaxSnapshotTableBytes = uint64_t{1024} * kMaxSnapshots;
inline constexpr uint32_t kMaxSnapshotExtraBytes = 1024;
inline constexpr uint32_t kMaxBitmaps = 65535;
inline constexpr uint64_t kMaxBitmapDirectoryBytes = uint64_t{1024} * kMaxBitmaps;

// What an L2 entry says about its cluster.
enum class ClusterKind : uint8_t { kUnallocated, kZeroPlain, kZeroAllocated, kNormal, kCompressed };

}  // namespace varve::check
