#include "qcow2/guest_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "qcow2/compressed_cluster.h"
#include "qcow2/corruption.h"
#include "qcow2/padded_read.h"

namespace varve::qcow2 {
namespace {

void fill_zero(std::span<std::byte> buffer) {
  if (!buffer.empty()) std::memset(buffer.data(), 0, buffer.size());
}

// The mapping's L2 tables in memory, for readers.
constexpr size_t kCacheBytes = size_t{32} << 20;
// For those who look at every table once: memory that is used again costs less than new memory.
constexpr size_t kScanBytes = size_t{2} << 20;

}  // namespace

Result<void> read_backing(BlockDevice* backing, uint64_t offset, std::span<std::byte> buffer) {
  if (backing == nullptr) {
    fill_zero(buffer);
    return {};
  }
  return read_padded(*backing, offset, buffer);
}

void GuestReader::forget_decompressed() {
  const std::lock_guard guard(decompressed_lock_);
  decompressed_entry_ = 0;
}

Result<void> GuestReader::read_compressed(const EntryFormat& format, uint64_t entry, uint64_t in_cluster,
                                          std::span<std::byte> buffer) {
  const std::lock_guard guard(decompressed_lock_);
  if (decompressed_entry_ != entry) {
    decompressed_entry_ = 0;
    const CompressedRange range = format.compressed_range(entry);
    const uint64_t file_size = TRY(file_.size());
    if (range.offset >= file_size)
      return corruption(file_.name(), range.offset,
                        fmt::format("compressed cluster at offset {:#x} lies outside of the file", range.offset));
    std::vector<std::byte> input(std::min(range.length, file_size - range.offset));
    TRY(file_.read_at(range.offset, input));
    decompressed_.resize(format.cluster_size());
    if (auto r = decompress_cluster(compression_, input, decompressed_); !r)
      return corruption(file_.name(), range.offset, r.error().message);
    decompressed_entry_ = entry;
  }
  std::memcpy(buffer.data(), &decompressed_[in_cluster], buffer.size());
  return {};
}

Result<void> GuestReader::read(Mapping& mapping, std::mutex* mapping_lock, BlockDevice* backing, uint64_t offset,
                               std::span<std::byte> buffer) {
  while (!buffer.empty()) {
    std::unique_lock<std::mutex> lock;
    if (mapping_lock != nullptr) lock = std::unique_lock(*mapping_lock);
    const MappedRun run = TRY(mapping.lookup(offset, buffer.size()));
    if (lock) {
      mapping.trim(kCacheBytes);
      lock.unlock();
    }
    const auto piece = buffer.first(run.length);
    switch (run.kind) {
      case MappedRun::Kind::kUnallocated:
        TRY(read_backing(backing, offset, piece));
        break;
      case MappedRun::Kind::kZero:
        fill_zero(piece);
        break;
      case MappedRun::Kind::kData:
        TRY(data_.read(run.host_offset, offset, piece));
        break;
      case MappedRun::Kind::kCompressed:
        TRY(read_compressed(mapping.format(), run.compressed_entry, offset & (mapping.format().cluster_size() - 1),
                            piece));
        break;
      case MappedRun::Kind::kInvalid:
        CHECK(false);
    }
    offset += run.length;
    buffer = buffer.subspan(run.length);
  }
  return {};
}

Result<std::vector<PlacedExtent>> placed_extents(Mapping& mapping, std::mutex& mapping_lock, uint64_t offset,
                                                 uint64_t end) {
  std::vector<PlacedExtent> extents;
  std::optional<uint64_t> table;
  while (offset < end) {
    const std::lock_guard lock(mapping_lock);
    if (table != mapping.l1_index(offset)) mapping.trim(kScanBytes);  // done with the last one
    table = mapping.l1_index(offset);
    const MappedRun run = TRY(mapping.lookup(offset, end - offset, RunJoin::kByPlace));
    PlacedExtent extent{offset, run.length, ExtentKind::kData, false, std::nullopt};
    if (run.has_place) extent.host_offset = run.host_offset;
    if (run.kind == MappedRun::Kind::kUnallocated) extent.kind = ExtentKind::kUnallocated;
    if (run.kind == MappedRun::Kind::kZero) extent.kind = ExtentKind::kZero;
    if (run.kind == MappedRun::Kind::kCompressed) {
      extent.compressed = true;
      extent.host_offset = run.compressed_entry;
    }
    PlacedExtent* last = extents.empty() ? nullptr : &extents.back();
    const bool follows = last != nullptr && last->kind == extent.kind && !last->compressed && !extent.compressed &&
                         last->host_offset.has_value() == extent.host_offset.has_value() &&
                         (!extent.host_offset || *last->host_offset + last->length == *extent.host_offset);
    if (follows)
      last->length += run.length;
    else
      extents.push_back(extent);
    offset += run.length;
  }
  return extents;
}

Result<std::vector<Extent>> mapping_extents(Mapping& mapping, std::mutex& mapping_lock, uint64_t offset, uint64_t end) {
  std::vector<Extent> extents;
  while (offset < end) {
    const std::lock_guard lock(mapping_lock);
    const MappedRun run = TRY(mapping.lookup(offset, end - offset));
    mapping.trim(kScanBytes);
    ExtentKind kind = ExtentKind::kData;
    if (run.kind == MappedRun::Kind::kUnallocated) kind = ExtentKind::kUnallocated;
    if (run.kind == MappedRun::Kind::kZero) kind = ExtentKind::kZero;
    append_extent(extents, {offset, run.length, kind});
    offset += run.length;
  }
  return extents;
}

}  // namespace varve::qcow2
