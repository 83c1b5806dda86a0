// The qcow2 header and its extensions (qcow2 specification, "Header" and "Header extensions"), parsed once and checked
// against every limit before anything is allocated: a Header in hand can't be wrong about sizes, alignments or ranges
// of the file. Knows nothing of what the tables contain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/block_device.h"

namespace varve::qcow2 {

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr size_t kHeaderSectorSize = 512;

// Limits (QEMU's own, docs/threat-model.md).
inline constexpr uint64_t kMaxL1Bytes = 32u << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = 8u << 20;
inline constexpr uint32_t kMaxSnapshots = 65536;
inline constexpr uint64_t kMaxSnapshotTableBytes = 1024ull * kMaxSnapshots;
inline constexpr uint32_t kMaxSnapshotExtraData = 1024;
inline constexpr uint32_t kMaxBackingNameBytes = 1023;
inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 21;

enum IncompatibleFeature : uint64_t {
  kIncompatDirty = 1u << 0,
  kIncompatCorrupt = 1u << 1,
  kIncompatDataFile = 1u << 2,
  kIncompatCompression = 1u << 3,
  kIncompatExtendedL2 = 1u << 4,
  kIncompatKnown = 0x1f,
};
enum CompatibleFeature : uint64_t { kCompatLazyRefcounts = 1u << 0 };
enum AutoclearFeature : uint64_t {
  kAutoclearBitmaps = 1u << 0,
  kAutoclearRawDataFile = 1u << 1,
  kAutoclearKnown = 0x3,
};

enum class CompressionType : uint8_t { kZlib = 0, kZstd = 1 };
enum class CryptMethod : uint32_t { kNone = 0, kAes = 1, kLuks = 2 };

enum ExtensionType : uint32_t {
  kExtensionEnd = 0,
  kExtensionBackingFormat = 0xe2792aca,
  kExtensionFeatureNames = 0x6803f857,
  kExtensionBitmaps = 0x23852875,
  kExtensionCrypto = 0x0537be77,
  kExtensionDataFile = 0x44415441,
};

struct HeaderExtension {
  uint32_t type = 0;
  std::vector<std::byte> data;
};

// The bitmaps extension (specification, "Bitmaps extension").
struct BitmapsExtension {
  uint32_t nb_bitmaps = 0;
  uint64_t directory_size = 0;    // bytes
  uint64_t directory_offset = 0;  // bytes, cluster-aligned
};

struct Header {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;  // virtual size, bytes
  CryptMethod crypt_method = CryptMethod::kNone;
  uint32_t l1_size = 0;  // entries
  uint64_t l1_table_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t nb_snapshots = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible_features = 0;
  uint64_t compatible_features = 0;
  uint64_t autoclear_features = 0;
  uint32_t refcount_order = 4;
  uint32_t header_length = 104;
  CompressionType compression_type = CompressionType::kZlib;
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file;
  std::optional<BitmapsExtension> bitmaps;  // present only where the autoclear bit says that it can be trusted
  std::vector<HeaderExtension> extensions;  // all, in order, as found
  std::vector<std::byte> unknown_fields;    // of the fixed part, behind those that this version knows

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  bool has_extended_l2() const { return (incompatible_features & kIncompatExtendedL2) != 0; }
  bool has_data_file() const { return (incompatible_features & kIncompatDataFile) != 0; }
  bool has_raw_data_file() const { return has_data_file() && (autoclear_features & kAutoclearRawDataFile) != 0; }
  bool is_dirty() const { return (incompatible_features & kIncompatDirty) != 0; }
  bool is_corrupt() const { return (incompatible_features & kIncompatCorrupt) != 0; }
  bool lazy_refcounts() const { return (compatible_features & kCompatLazyRefcounts) != 0; }
  uint32_t refcount_bits() const { return 1u << refcount_order; }
  uint64_t l2_entry_size() const { return has_extended_l2() ? 16 : 8; }
  uint64_t l2_entries() const { return cluster_size() / l2_entry_size(); }
  uint64_t subcluster_size() const { return has_extended_l2() ? cluster_size() / 32 : cluster_size(); }
  uint64_t bytes_per_l2_table() const { return l2_entries() << cluster_bits; }  // guest bytes one L2 table maps
  uint64_t refcounts_per_block() const { return cluster_size() * 8 / refcount_bits(); }
  // L1 entries that a disk of `bytes` needs.
  uint64_t l1_entries_for(uint64_t bytes) const;
};

// Reads and checks the header of `file`. kCorrupt (with path and offset) for anything outside the format, kUnsupported
// for unknown incompatible features, named from the feature name table where it has them. Dirty and corrupt bits are
// not errors here: who wants to write asks for them.
Result<Header> read_header(BlockDevice& file);

// The first cluster's contents for a header: fixed part, extensions (rebuilt from the optional fields, unknown ones
// kept), backing file name.
struct SerializedHeader {
  std::vector<std::byte> cluster;
  uint64_t extensions_end = 0;  // behind the end marker
  uint64_t end = 0;             // behind the backing file name
};

// The backing file name comes at `backing_name_at`, or behind the extensions where they reach further. kInvalidArgument
// where all of it does not fit into one cluster.
Result<SerializedHeader> serialize_header(const Header& header, uint64_t backing_name_at = 0);

// Puts the fields that a snapshot commit may change (size, l1, refcount table, snapshots, autoclear features) into a
// copy of the present first sector; every other byte stays.
void patch_header_sector(const Header& header, std::span<std::byte, kHeaderSectorSize> sector);

}  // namespace varve::qcow2
