#include "qcow2/bitmap_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

struct RawDirectoryEntry {
  be64 table_offset;
  be32 table_size;  // entries of 8 bytes
  be32 flags;
  uint8_t type;
  uint8_t granularity_bits;
  be16 name_size;
  be32 extra_data_size;
};
static_assert(sizeof(RawDirectoryEntry) == 24);

enum BitmapFlag : uint32_t { kInUse = 1u << 0, kAutomatic = 1u << 1 };

constexpr uint8_t kDirtyTracking = 1;  // the only type there is

constexpr uint64_t kTableOffsetMask = 0x00fffffffffffe00ull;
constexpr uint64_t kMaxBitmapBytes = uint64_t{512} << 20;  // QEMU's limit, of one bitmap's clusters
constexpr uint64_t kMaxAllTablesBytes = uint64_t{32} << 20;
constexpr uint32_t kMaxNameBytes = 1023;  // the same
constexpr uint8_t kMinGranularityBits = 9;
constexpr uint8_t kMaxGranularityBits = 31;

}  // namespace

Result<std::vector<Bitmap>> read_bitmap_directory(BlockDevice& file, const Header& header,
                                                  const BitmapsExtension& bitmaps) {
  const uint64_t file_size = TRY(file.size());
  if (bitmaps.directory_offset + bitmaps.directory_size > file_size)
    return corruption(file.name(), bitmaps.directory_offset, "the bitmap directory runs past the end of the file");
  std::vector<std::byte> directory(bitmaps.directory_size);
  TRY(file.read_at(bitmaps.directory_offset, directory));
  std::vector<Bitmap> result;
  std::unordered_set<std::string> names;
  uint64_t all_tables = 0;
  uint64_t at = 0;
  for (uint32_t i = 0; i < bitmaps.nb_bitmaps; ++i) {
    RawDirectoryEntry raw;
    const auto bad = [&](std::string_view what) {
      return corruption(file.name(), bitmaps.directory_offset + at, fmt::format("dirty bitmap {}: {}", i, what));
    };
    if (at + sizeof raw > directory.size()) return bad("its entry runs past the bitmap directory");
    std::memcpy(static_cast<void*>(&raw), &directory[at], sizeof raw);
    const uint64_t name_at = at + sizeof raw + uint64_t{raw.extra_data_size};
    const uint64_t name_size = raw.name_size;
    if (name_at + name_size > directory.size()) return bad("its entry runs past the bitmap directory");
    if (name_size == 0 || name_size > kMaxNameBytes) return bad("its name is empty or too long");
    if (raw.type != kDirtyTracking) return bad(fmt::format("its type {} is not known", raw.type));
    if (raw.granularity_bits < kMinGranularityBits || raw.granularity_bits > kMaxGranularityBits)
      return bad(fmt::format("its granularity of 2^{} bytes is outside of 2^{} to 2^{}", raw.granularity_bits,
                             kMinGranularityBits, kMaxGranularityBits));
    Bitmap bitmap;
    bitmap.name.assign(name_size, '\0');
    std::memcpy(bitmap.name.data(), &directory[name_at], name_size);
    bitmap.table_offset = raw.table_offset;
    bitmap.table_entries = raw.table_size;
    bitmap.in_use = (raw.flags & kInUse) != 0;
    bitmap.automatic = (raw.flags & kAutomatic) != 0;
    bitmap.granularity = uint64_t{1} << raw.granularity_bits;
    bitmap.other_flags = raw.flags & ~(kInUse | kAutomatic);
    bitmap.extra_data.assign(directory.begin() + static_cast<ptrdiff_t>(at + sizeof raw),
                             directory.begin() + static_cast<ptrdiff_t>(name_at));
    all_tables += bitmap.table_entries * 8;
    if (bitmap.table_entries > kMaxBitmapBytes / header.cluster_size()) return bad("its table is too large");
    if (all_tables > kMaxAllTablesBytes) return bad("the tables of all bitmaps are too large together");
    if (bitmap.table_offset % header.cluster_size() != 0 ||
        (bitmap.table_entries != 0 && bitmap.table_offset < header.cluster_size()))
      return bad("its table is misaligned or overlaps the header");
    if (bitmap.table_offset > file_size || bitmap.table_entries * 8 > file_size - bitmap.table_offset)
      return bad("its table lies outside of the file");
    if (!names.insert(bitmap.name).second) return bad("another one has its name");
    result.push_back(std::move(bitmap));
    at = align_up(name_at + name_size, 8);
  }
  if (at < directory.size())
    return corruption(
        file.name(), bitmaps.directory_offset + at,
        fmt::format("the bitmap directory holds more than the {} bitmaps of the header extension", bitmaps.nb_bitmaps));
  return result;
}

Result<ClusterRuns> clusters_of(BlockDevice& file, const Header& header, const Bitmap& bitmap) {
  const uint64_t cluster_size = header.cluster_size();
  ClusterRuns clusters;
  if (bitmap.table_entries == 0) return clusters;
  clusters.emplace_back(bitmap.table_offset / cluster_size, div_round_up(bitmap.table_entries * 8, cluster_size));
  std::vector<be64> table(bitmap.table_entries);
  TRY(file.read_at(bitmap.table_offset, std::as_writable_bytes(std::span(table))));
  for (const uint64_t entry : table) {
    const uint64_t offset = entry & kTableOffsetMask;
    if (offset == 0) continue;  // all zeroes or all ones, no cluster
    if (offset % cluster_size != 0)
      return corruption(file.name(), bitmap.table_offset,
                        fmt::format("dirty bitmap '{}': its data is not cluster-aligned", bitmap.name));
    clusters.emplace_back(offset / cluster_size, 1);
  }
  return clusters;
}

Result<ClusterRuns> bitmap_clusters(BlockDevice& file, const Header& header, const BitmapsExtension& bitmaps) {
  const uint64_t cluster_size = header.cluster_size();
  ClusterRuns clusters;
  clusters.emplace_back(bitmaps.directory_offset / cluster_size, div_round_up(bitmaps.directory_size, cluster_size));
  for (const Bitmap& bitmap : TRY(read_bitmap_directory(file, header, bitmaps))) {
    const ClusterRuns of_one = TRY(clusters_of(file, header, bitmap));
    clusters.insert(clusters.end(), of_one.begin(), of_one.end());
  }
  return clusters;
}

std::vector<std::byte> serialize_bitmap_directory(std::span<const Bitmap> bitmaps) {
  std::vector<std::byte> directory;
  for (const Bitmap& bitmap : bitmaps) {
    RawDirectoryEntry raw{};
    raw.table_offset = bitmap.table_offset;
    raw.table_size = static_cast<uint32_t>(bitmap.table_entries);
    raw.flags =
        bitmap.other_flags | (bitmap.in_use ? uint32_t{kInUse} : 0) | (bitmap.automatic ? uint32_t{kAutomatic} : 0);
    raw.type = kDirtyTracking;
    raw.granularity_bits = static_cast<uint8_t>(std::countr_zero(bitmap.granularity));
    raw.name_size = static_cast<uint16_t>(bitmap.name.size());
    raw.extra_data_size = static_cast<uint32_t>(bitmap.extra_data.size());
    const size_t at = directory.size();
    const size_t name_at = at + sizeof raw + bitmap.extra_data.size();
    directory.resize(align_up(name_at + bitmap.name.size(), 8));
    std::memcpy(&directory[at], &raw, sizeof raw);
    std::ranges::copy(bitmap.extra_data, directory.begin() + static_cast<ptrdiff_t>(at + sizeof raw));
    std::memcpy(&directory[name_at], bitmap.name.data(), bitmap.name.size());
  }
  return directory;
}

}  // namespace varve::qcow2
