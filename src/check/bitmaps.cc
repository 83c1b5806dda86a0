#include "check/bitmaps.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::check {

namespace {

constexpr uint64_t kEntryReserved = 0xff000000000001fe;
constexpr uint64_t kEntryOffset = 0x00fffffffffffe00;
constexpr uint64_t kEntryAllOnes = 1;
constexpr uint64_t kMaxTableEntries = 0x8000000;
constexpr uint64_t kMaxBitmapBytes = 0x20000000;
constexpr uint32_t kFlagInUse = 1;
constexpr uint32_t kKnownFlags = 3;

struct Bitmap {
  std::string name;
  uint64_t table_offset = 0;
  uint32_t table_entries = 0;
  bool in_use = false;
};

Error bad(std::string message) {
  return make_error(ErrorKind::kCorrupt, std::move(message));
}

bool is_sound(const Layout& layout, uint64_t entry) {
  const uint64_t offset = entry & kEntryOffset;
  if ((entry & kEntryReserved) != 0) return false;
  return offset == 0 || ((entry & kEntryAllOnes) == 0 && layout.is_aligned(offset));
}

bool is_sound(const Layout& layout, const Bitmap& bitmap, uint32_t flags, unsigned type, unsigned granularity_bits,
              size_t name_bytes) {
  if (bitmap.table_entries == 0 || bitmap.table_offset == 0 || !layout.is_aligned(bitmap.table_offset) ||
      bitmap.table_entries > kMaxTableEntries || granularity_bits > 31 || granularity_bits < 9 ||
      (flags & ~kKnownFlags) != 0 || name_bytes > 1023 || type != 1) {
    return false;
  }
  const uint64_t bytes = bitmap.table_entries * layout.cluster_size();
  if (bytes > kMaxBitmapBytes) return false;
  return bitmap.in_use || layout.virtual_size <= (bytes * 8) << granularity_bits;
}

Result<std::vector<Bitmap>> read_directory(const ImageFile& file, const Layout& layout) {
  const uint64_t size = layout.bitmap_directory_size;
  if (size == 0) return bad("Requested bitmap directory size is zero");
  if (layout.bitmap_directory_offset >= file.size() || size > file.size()) {
    // All zeroes to QEMU: entries of 24 bytes with an impossible table.
    return bad("Bitmap '' doesn't satisfy the constraints");
  }
  std::vector<std::byte> directory(size);
  if (!file.read(layout.bitmap_directory_offset, directory)) {
    return bad("Failed to read bitmap directory: Input/output error");
  }
  std::vector<Bitmap> bitmaps;
  constexpr uint64_t kHead = 24;
  for (uint64_t at = 0; at < size;) {
    if (size - at < kHead) return bad("Broken bitmap directory");
    if (bitmaps.size() == layout.nb_bitmaps) {
      return bad("More bitmaps found than specified in header extension");
    }
    Bitmap bitmap;
    bitmap.table_offset = load_be<uint64_t>(&directory[at]);
    bitmap.table_entries = load_be<uint32_t>(&directory[at + 8]);
    const auto flags = load_be<uint32_t>(&directory[at + 12]);
    const auto type = std::to_integer<unsigned>(directory[at + 16]);
    const auto granularity_bits = std::to_integer<unsigned>(directory[at + 17]);
    const auto name_bytes = load_be<uint16_t>(&directory[at + 18]);
    const auto extra_bytes = load_be<uint32_t>(&directory[at + 20]);
    const uint64_t entry_bytes = align_up(kHead + name_bytes + extra_bytes, 8);
    if (entry_bytes > size - at) return bad("Broken bitmap directory");
    if (extra_bytes != 0) return bad("Bitmap extra data is not supported");
    bitmap.name.resize(name_bytes);
    std::memcpy(bitmap.name.data(), &directory[at + kHead - 1] + 1, name_bytes);
    bitmap.in_use = (flags & kFlagInUse) != 0;
    if (!is_sound(layout, bitmap, flags, type, granularity_bits, name_bytes)) {
      return bad(fmt::format("Bitmap '{}' doesn't satisfy the constraints", bitmap.name.c_str()));
    }
    bitmaps.push_back(std::move(bitmap));
    at += entry_bytes;
  }
  if (bitmaps.size() != layout.nb_bitmaps) return bad("Less bitmaps found than specified in header extension");
  return bitmaps;
}

// Nothing where an entry is not sound, or the table can't be read.
Result<std::vector<uint64_t>> read_table(const ImageFile& file, const Layout& layout, const Bitmap& bitmap) {
  std::vector<uint64_t> table = TRY(file.read_words(bitmap.table_offset, bitmap.table_entries));
  for (const uint64_t entry : table) {
    if (!is_sound(layout, entry)) return system_error(EINVAL, "bitmap table");
  }
  return table;
}

}  // namespace

Result<void> validate_bitmaps(const ImageFile& file, const Layout& layout) {
  if (layout.nb_bitmaps == 0) return {};
  for (const Bitmap& bitmap : TRY(read_directory(file, layout))) {
    if (bitmap.in_use) continue;
    const Result<std::vector<uint64_t>> table = read_table(file, layout, bitmap);
    if (!table) {
      return bad(fmt::format("Could not read bitmap_table table from image for bitmap '{}': {}", bitmap.name,
                             std::strerror(table.error().sys_errno)));
    }
  }
  return {};
}

bool count_bitmaps(Scan& scan) {
  if (scan.layout.nb_bitmaps == 0) return true;
  const auto ends = [&](int error) {
    ++scan.tally.corruptions;
    scan.tally.error = error;
    return false;
  };
  count_range(scan, scan.layout.bitmap_directory_offset, scan.layout.bitmap_directory_size);
  const Result<std::vector<Bitmap>> bitmaps = read_directory(scan.file, scan.layout);
  if (!bitmaps) return ends(EINVAL);
  for (const Bitmap& bitmap : *bitmaps) {
    count_range(scan, bitmap.table_offset, uint64_t{bitmap.table_entries} * 8);
    const Result<std::vector<uint64_t>> table = read_table(scan.file, scan.layout, bitmap);
    if (!table) return ends(table.error().sys_errno == EINVAL ? EINVAL : EIO);
    for (const uint64_t entry : *table) {
      if ((entry & kEntryOffset) != 0) count_range(scan, entry & kEntryOffset, scan.layout.cluster_size());
    }
  }
  return true;
}

}  // namespace varve::check
