// Reading guest bytes through a mapping: data from the file, zeroes, decompressed clusters, the backing device. Serves
// the active disk and the snapshots alike.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "qcow2/guest_data.h"
#include "qcow2/mapping.h"

namespace varve::qcow2 {

class GuestReader {
 public:
  // `file` has the compressed clusters, `data` the others. Both outlive the reader.
  GuestReader(BlockDevice& file, const GuestData& data, CompressionType compression)
      : file_(file), data_(data), compression_(compression) {}

  // Fills `buffer` from guest offset `offset`. `mapping_lock` guards `mapping` and is held for look-ups only; nullptr
  // where the caller holds it already.
  Result<void> read(Mapping& mapping, std::mutex* mapping_lock, BlockDevice* backing, uint64_t offset,
                    std::span<std::byte> buffer);
  // The clusters behind a compressed entry are about to be reused.
  void forget_decompressed();
  Result<void> read_compressed(const EntryFormat& format, uint64_t entry, uint64_t in_cluster,
                               std::span<std::byte> buffer);

 private:
  BlockDevice& file_;
  const GuestData& data_;
  CompressionType compression_;
  // The last decompressed cluster: small sequential reads would inflate it again and again.
  std::mutex decompressed_lock_;
  uint64_t decompressed_entry_ = 0;
  std::vector<std::byte> decompressed_;
};

// Reads from a backing device that may be shorter than the guest's disk: zeroes behind its end.
Result<void> read_backing(BlockDevice* backing, uint64_t offset, std::span<std::byte> buffer);

// A stretch of a disk as one layer holds it, and where in the file.
struct PlacedExtent {
  uint64_t offset = 0;
  uint64_t length = 0;
  ExtentKind kind = ExtentKind::kUnallocated;
  bool compressed = false;  // kData only; a cluster each
  // In the data device, where a place is kept: for data, for zeroes with a cluster of their own, and for subclusters
  // that nothing was written to yet. For compressed data, the entry: equal where it is the very same data.
  std::optional<uint64_t> host_offset;
};

// The extents of a mapping with their places, neighbours in the guest and in the file merged.
Result<std::vector<PlacedExtent>> placed_extents(Mapping& mapping, std::mutex& mapping_lock, uint64_t offset,
                                                 uint64_t end);

// The extents of a mapping, neighbours of one kind merged.
Result<std::vector<Extent>> mapping_extents(Mapping& mapping, std::mutex& mapping_lock, uint64_t offset, uint64_t end);

}  // namespace varve::qcow2
