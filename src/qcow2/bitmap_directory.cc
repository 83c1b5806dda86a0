#include "qcow2/bitmap_directory.h"

#include <fmt/format.h>

#include <cstring>

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

constexpr uint64_t kTableOffsetMask = 0x00fffffffffffe00ull;
constexpr uint64_t kMaxTableEntries = 0x8000000;  // QEMU's limit

}  // namespace

Result<std::vector<std::pair<uint64_t, uint64_t>>> bitmap_clusters(BlockDevice& file, const Header& header,
                                                                   const BitmapsExtension& bitmaps) {
  const uint64_t cluster_size = header.cluster_size();
  const uint64_t file_size = TRY(file.size());
  std::vector<std::pair<uint64_t, uint64_t>> clusters;
  clusters.emplace_back(bitmaps.directory_offset / cluster_size, div_round_up(bitmaps.directory_size, cluster_size));

  std::vector<std::byte> directory(bitmaps.directory_size);
  if (bitmaps.directory_offset + bitmaps.directory_size > file_size)
    return corruption(file.name(), bitmaps.directory_offset, "the bitmap directory runs past the end of the file");
  TRY(file.read_at(bitmaps.directory_offset, directory));
  uint64_t at = 0;
  for (uint32_t i = 0; i < bitmaps.nb_bitmaps; ++i) {
    RawDirectoryEntry raw;
    const auto bad = [&](const char* what) {
      return corruption(file.name(), bitmaps.directory_offset + at, fmt::format("dirty bitmap {}: {}", i, what));
    };
    if (at + sizeof raw > directory.size()) return bad("its entry runs past the bitmap directory");
    std::memcpy(static_cast<void*>(&raw), &directory[at], sizeof raw);
    const uint64_t table_offset = raw.table_offset;
    const uint64_t entries = raw.table_size;
    if (entries > kMaxTableEntries) return bad("its table is too large");
    if (table_offset % cluster_size != 0 || (entries != 0 && table_offset < cluster_size))
      return bad("its table is misaligned or overlaps the header");
    if (table_offset > file_size || entries * 8 > file_size - table_offset)
      return bad("its table lies outside of the file");
    if (entries != 0) clusters.emplace_back(table_offset / cluster_size, div_round_up(entries * 8, cluster_size));
    std::vector<be64> table(entries);
    if (entries != 0) TRY(file.read_at(table_offset, std::as_writable_bytes(std::span(table))));
    for (const uint64_t entry : table) {
      const uint64_t offset = entry & kTableOffsetMask;
      if (offset == 0) continue;  // all zeroes or all ones, no cluster
      if (offset % cluster_size != 0) return bad("its data is not cluster-aligned");
      clusters.emplace_back(offset / cluster_size, 1);
    }
    at += align_up(sizeof raw + uint64_t{raw.extra_data_size} + uint64_t{raw.name_size}, 8);
  }
  return clusters;
}

}  // namespace varve::qcow2
