// The contents of persistent dirty bitmaps (qcow2 specification, "Bitmaps"): which parts of the guest's disk were
// written since a bitmap was made or cleared. Incremental backups believe them, so a bitmap that may have missed a
// write is marked "in use" in the file, and no program trusts it any more.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "qcow2/bitmap_directory.h"
#include "qcow2/header.h"

namespace varve::qcow2 {

struct DirtyBitmap {
  std::string name;          // 1 to 1023 bytes
  uint64_t granularity = 0;  // bytes of the guest's disk that one bit stands for; a power of two, 512 to 2 GiB
  bool recording = true;     // "auto": writes are recorded whenever the image is open for writing
  // Was not stored cleanly by who used it last: nobody knows what it missed. Such a bitmap has no bits here, and stays
  // in the file as it is (`at`) until it is removed.
  bool inconsistent = false;
  std::vector<std::byte> bits;  // bit i % 8 of byte i / 8 stands for [i * granularity, (i + 1) * granularity)
  Bitmap at;                    // where the file has it; for those that were read from one

  bool contains(uint64_t offset) const;
  void insert(uint64_t offset, uint64_t length);
  void clear();
};

inline constexpr uint64_t kMinBitmapGranularity = 512;
inline constexpr uint64_t kMaxBitmapGranularity = uint64_t{1} << 31;
inline constexpr uint32_t kMaxBitmaps = 65535;
inline constexpr size_t kMaxBitmapNameBytes = 1023;
inline constexpr uint64_t kMaxBitmapBytes = uint64_t{512} << 20;  // of one bitmap in the file; QEMU's limit

// A new bitmap for a disk of `disk_size` bytes, with no bit set. kInvalidArgument where the name, the granularity or
// the size that follows from them breaks the format's limits.
Result<DirtyBitmap> make_bitmap(std::string name, uint64_t granularity, uint64_t disk_size, uint64_t cluster_size);

// What QEMU takes where nobody names a granularity.
uint64_t default_granularity(const Header& header);

// All bitmaps that header.bitmaps vouches for, in the directory's order. kCorrupt where one breaks the format.
Result<std::vector<DirtyBitmap>> load_bitmaps(BlockDevice& file, const Header& header);

// Adds what `from` has, bit by bit or, where granularities differ, range by range.
void merge_bitmap(DirtyBitmap& into, const DirtyBitmap& from, uint64_t disk_size);

}  // namespace varve::qcow2
