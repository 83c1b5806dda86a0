#include "qcow2/dirty_bitmaps.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/corruption.h"
#include "qcow2/padded_read.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kAllOnes = 1;  // in a table entry without a cluster
// Who does not know a bitmap's extra data may use its bits all the same; without this flag it may not.
constexpr uint32_t kExtraDataIsCompatible = 1u << 2;
constexpr uint64_t kTableOffsetMask = 0x00fffffffffffe00ull;

size_t bytes_for(uint64_t disk_size, uint64_t granularity) {
  return static_cast<size_t>(div_round_up(div_round_up(disk_size, granularity), 8));
}

// Bits behind the end of the disk stand for nothing.
void trim_tail(std::vector<std::byte>& bits, uint64_t disk_size, uint64_t granularity) {
  const uint64_t used = div_round_up(disk_size, granularity);
  if (used % 8 != 0 && !bits.empty()) bits.back() &= static_cast<std::byte>((1u << (used % 8)) - 1);
}

Result<std::vector<std::byte>> load_bits(BlockDevice& file, const Header& header, const Bitmap& bitmap) {
  const uint64_t cluster_size = header.cluster_size();
  const auto bad = [&](const std::string& what) {
    return corruption(file.name(), bitmap.table_offset, fmt::format("dirty bitmap '{}': {}", bitmap.name, what));
  };
  const size_t bytes = bytes_for(header.size, bitmap.granularity);
  if (bitmap.table_entries != div_round_up(bytes, cluster_size))
    return bad(fmt::format("its table has {} entries, a disk of {} bytes needs {}", bitmap.table_entries, header.size,
                           div_round_up(bytes, cluster_size)));
  std::vector<be64> table(bitmap.table_entries);
  TRY(file.read_at(bitmap.table_offset, std::as_writable_bytes(std::span(table))));
  std::vector<std::byte> bits(bytes);
  const uint64_t file_size = TRY(file.size());
  for (size_t i = 0; i < table.size(); ++i) {
    const uint64_t entry = table[i];
    const uint64_t offset = entry & kTableOffsetMask;
    const auto piece =
        std::span(bits).subspan(i * cluster_size).first(std::min(cluster_size, bytes - i * cluster_size));
    if ((entry & ~(kTableOffsetMask | kAllOnes)) != 0 || (offset != 0 && (entry & kAllOnes) != 0))
      return bad(fmt::format("table entry {} ({:#x}) has reserved bits set", i, entry));
    if (offset == 0) {
      std::ranges::fill(piece, (entry & kAllOnes) != 0 ? std::byte{0xff} : std::byte{0});
      continue;
    }
    if (offset % cluster_size != 0 || offset >= file_size)
      return bad(fmt::format("table entry {} ({:#x}) leads nowhere", i, entry));
    TRY(read_padded(file, offset, piece));
  }
  trim_tail(bits, header.size, bitmap.granularity);
  return bits;
}

}  // namespace

bool DirtyBitmap::contains(uint64_t offset) const {
  const uint64_t bit = offset / granularity;
  return bit / 8 < bits.size() && (bits[bit / 8] & static_cast<std::byte>(1u << (bit % 8))) != std::byte{0};
}

void DirtyBitmap::insert(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  const uint64_t last = std::min<uint64_t>((offset + length - 1) / granularity, bits.size() * 8 - 1);
  for (uint64_t bit = offset / granularity; bit <= last;) {
    if (bit % 8 == 0 && last - bit >= 7) {
      bits[bit / 8] = std::byte{0xff};
      bit += 8;
    } else {
      bits[bit / 8] |= static_cast<std::byte>(1u << (bit % 8));
      ++bit;
    }
  }
}

void DirtyBitmap::clear() {
  std::ranges::fill(bits, std::byte{0});
}

Result<DirtyBitmap> make_bitmap(std::string name, uint64_t granularity, uint64_t disk_size, uint64_t cluster_size) {
  const auto invalid = [](std::string what) { return make_error(ErrorKind::kInvalidArgument, std::move(what)); };
  if (name.empty()) return invalid("Bitmap name cannot be empty");
  if (name.size() > kMaxBitmapNameBytes)
    return invalid(fmt::format("Name length exceeds maximum ({} characters)", kMaxBitmapNameBytes));
  if (!std::has_single_bit(granularity) || granularity < kMinBitmapGranularity || granularity > kMaxBitmapGranularity)
    return invalid("Granularity must be power of 2 and at least 512");
  const size_t bytes = bytes_for(disk_size, granularity);
  if (align_up(bytes, cluster_size) > kMaxBitmapBytes)
    return invalid("Too much space will be occupied by the bitmap. Use larger granularity");
  DirtyBitmap bitmap;
  bitmap.name = std::move(name);
  bitmap.granularity = granularity;
  bitmap.bits.resize(bytes);
  return bitmap;
}

uint64_t default_granularity(const Header& header) {
  return std::clamp<uint64_t>(header.cluster_size(), 4096, 65536);
}

Result<std::vector<DirtyBitmap>> load_bitmaps(BlockDevice& file, const Header& header) {
  std::vector<DirtyBitmap> all;
  if (!header.bitmaps) return all;
  for (Bitmap& found : TRY(read_bitmap_directory(file, header, *header.bitmaps))) {
    // Such a bitmap may mean something else than its bits say, and would not notice a write of ours.
    const bool has_unknown_extra = !found.extra_data.empty() && (found.other_flags & kExtraDataIsCompatible) == 0;
    if ((found.other_flags & ~kExtraDataIsCompatible) != 0 || has_unknown_extra) {
      return make_error(ErrorKind::kUnsupported,
                        fmt::format("{}: dirty bitmap '{}': it has {} that this version does not know", file.name(),
                                    found.name, has_unknown_extra ? "extra data" : "flags"))
          .with_note("the program that made the bitmap can remove it");
    }
    DirtyBitmap bitmap;
    bitmap.name = found.name;
    bitmap.granularity = found.granularity;
    bitmap.recording = found.automatic;
    bitmap.inconsistent = found.in_use;
    if (!bitmap.inconsistent) bitmap.bits = TRY(load_bits(file, header, found));
    bitmap.at = std::move(found);
    all.push_back(std::move(bitmap));
  }
  return all;
}

void merge_bitmap(DirtyBitmap& into, const DirtyBitmap& from, uint64_t disk_size) {
  if (into.granularity == from.granularity) {
    for (size_t i = 0; i < std::min(into.bits.size(), from.bits.size()); ++i) into.bits[i] |= from.bits[i];
    return;
  }
  for (uint64_t bit = 0; bit < uint64_t{from.bits.size()} * 8; ++bit) {
    if (bit % 8 == 0 && from.bits[bit / 8] == std::byte{0}) {
      bit += 7;
      continue;
    }
    const uint64_t offset = bit * from.granularity;
    if (offset >= disk_size) break;
    if (from.contains(offset)) into.insert(offset, std::min(from.granularity, disk_size - offset));
  }
}

}  // namespace varve::qcow2
