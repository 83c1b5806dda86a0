// What the header of a qcow2 image says, as far as a check needs it, and the file below it as QEMU sees it: reads past
// its end are zeroes, its size is a whole number of sectors.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "check/format.h"
#include "io/block_device.h"

namespace varve::check {

struct Layout {
  uint32_t version = 3;
  unsigned cluster_bits = 16;
  uint64_t virtual_size = 0;  // whole sectors
  uint32_t crypt_method = 0;
  uint64_t l1_offset = 0;
  uint32_t l1_size = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t nb_snapshots = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0;
  uint64_t autoclear = 0;
  unsigned refcount_order = 4;
  uint8_t compression_type = 0;  // 0 deflate, 1 zstd
  uint64_t crypto_offset = 0;
  uint64_t crypto_length = 0;  // 0: none
  bool has_crypto_extension = false;
  uint32_t nb_bitmaps = 0;
  uint64_t bitmap_directory_offset = 0;
  uint64_t bitmap_directory_size = 0;
  bool has_untrusted_bitmaps = false;  // an extension without its autoclear bit

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  bool has_data_file() const { return (incompatible & kIncompatibleDataFile) != 0; }
  bool has_extended_l2() const { return (incompatible & kIncompatibleExtendedL2) != 0; }
  uint64_t l2_entry_bytes() const { return has_extended_l2() ? 16 : 8; }
  uint64_t l2_entries() const { return cluster_size() / l2_entry_bytes(); }
  uint64_t refcounts_per_block() const { return cluster_size() * 8 >> refcount_order; }
  uint64_t refcount_table_entries() const { return refcount_table_clusters * (cluster_size() / 8); }
  bool is_aligned(uint64_t offset) const { return offset % cluster_size() == 0; }

  ClusterKind kind_of(uint64_t l2_entry) const;
  // Where a compressed cluster's sectors lie.
  struct Compressed {
    uint64_t offset;
    uint64_t bytes;
  };
  Compressed compressed(uint64_t l2_entry) const;
};

class ImageFile {
 public:
  explicit ImageFile(BlockDevice& device) : device_(device) {}
  Result<void> measure();  // before anything else
  BlockDevice& device() const { return device_; }
  uint64_t size() const { return size_; }  // rounded up to whole sectors
  // What a planned write or growth will make of it.
  void will_reach(uint64_t end) { size_ = size_ < end ? end : size_; }
  // A planned write that is read back from here on: tables of a damaged image may lie where it goes.
  void will_hold(uint64_t offset, std::vector<std::byte> bytes) { planned_.emplace_back(offset, std::move(bytes)); }
  // Zeroes past the end. EIO for offsets that no file has.
  Result<void> read(uint64_t offset, std::span<std::byte> buffer) const;
  Result<std::vector<uint64_t>> read_words(uint64_t offset, uint64_t count) const;  // big-endian on disk
  // The same without those that lie behind the end of the file, and are zeroes: a table may claim 32 MiB there.
  Result<std::vector<uint64_t>> read_words_inside(uint64_t offset, uint64_t count) const;

 private:
  BlockDevice& device_;
  uint64_t device_size_ = 0;
  uint64_t size_ = 0;
  std::vector<std::pair<uint64_t, std::vector<std::byte>>> planned_;
};

// Where the lines of a check go, as qemu-img prints them: `line` to standard error as it is, `error` behind the
// program's name. None ends in a newline.
struct Report {
  std::function<void(const std::string&)> line;
  std::function<void(const std::string&)> error;
};

// Errors are in QEMU's words. The snapshot table is not looked at: a check has to be able to repair it.
Result<Layout> read_layout(const ImageFile& file);

}  // namespace varve::check
