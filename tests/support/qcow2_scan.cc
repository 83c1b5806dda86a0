#include "support/qcow2_scan.h"

#include <fmt/format.h>

#include <map>
#include <set>
#include <string_view>

namespace varve::test {
namespace {

constexpr uint64_t kCopied = 1ull << 63;
constexpr uint64_t kCompressed = 1ull << 62;
constexpr uint64_t kOffset = 0x00fffffffffffe00ull;

// Where a reference stands; becomes text only in a message.
struct Place {
  std::string_view what;
  uint64_t first = 0;
  int64_t second = -1;

  std::string text() const {
    return second < 0 ? fmt::format("{} {}", what, first) : fmt::format("{} {}, L2 entry {}", what, first, second);
  }
};

class Scanner {
 public:
  explicit Scanner(std::span<const std::byte> file) : file_(file) {}

  Qcow2Scan run() {
    if (!read_header()) return std::move(result_);
    reference(0, cluster_, {"header"});
    read_refcounts();
    walk_l1(l1_offset_, l1_size_, true, "active L1 entry");
    walk_snapshots();
    walk_bitmaps();
    compare();
    return std::move(result_);
  }

 private:
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    if (result_.errors.size() < 50) result_.errors.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  // Big-endian; what lies behind the end of the file is zero, as a file cut within its last cluster reads.
  uint64_t number(uint64_t at, unsigned bytes) const {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) {
      value <<= 8;
      if (at + i < file_.size()) value |= std::to_integer<uint64_t>(file_[at + i]);
    }
    return value;
  }
  uint64_t u16(uint64_t at) const { return number(at, 2); }
  uint64_t u32(uint64_t at) const { return number(at, 4); }
  uint64_t u64(uint64_t at) const { return number(at, 8); }

  bool read_header() {
    if (file_.size() < 72 || u32(0) != 0x514649fb) {
      error("not a qcow2 image");
      return false;
    }
    version_ = u32(4);
    const uint64_t cluster_bits = u32(20);
    if ((version_ != 2 && version_ != 3) || cluster_bits < 9 || cluster_bits > 21) {
      error("version {} with cluster bits {}", version_, cluster_bits);
      return false;
    }
    cluster_bits_ = static_cast<unsigned>(cluster_bits);
    cluster_ = 1ull << cluster_bits_;
    size_ = u64(24);
    l1_size_ = u32(36);
    l1_offset_ = u64(40);
    refcount_table_ = u64(48);
    refcount_table_clusters_ = u32(56);
    uint64_t header_length = 72;
    if (version_ == 3) {
      const uint64_t incompatible = u64(72);
      if ((incompatible & 3) != 0)
        error("the image is marked dirty or corrupt: incompatible features {:#x}", incompatible);
      extended_ = (incompatible & 16) != 0;
      data_file_ = (incompatible & 4) != 0;
      autoclear_ = u64(88);
      refcount_bits_ = 1u << (u32(96) & 7);
      header_length = u32(100);
    }
    for (uint64_t at = header_length; at + 8 <= cluster_;) {
      const uint64_t type = u32(at);
      const uint64_t length = u32(at + 4);
      if (type == 0) break;
      if (type == 0x23852875) bitmaps_extension_ = at + 8;
      at += 8 + (length + 7) / 8 * 8;
    }
    const uint64_t entry_bytes = extended_ ? 16 : 8;
    const uint64_t per_table = cluster_ / entry_bytes * cluster_;
    if (l1_size_ * per_table < size_)
      error("an L1 table of {} entries is too small for a disk of {} bytes", l1_size_, size_);
    result_.clusters = (file_.size() + cluster_ - 1) / cluster_;
    expected_.resize(result_.clusters);
    return true;
  }

  // A reference to bytes [offset, offset + length). False where it leads nowhere.
  bool reference(uint64_t offset, uint64_t length, const Place& place) {
    if (length == 0) return true;
    if (offset / cluster_ >= expected_.size() || (offset + length - 1) / cluster_ >= expected_.size()) {
      error("{}: {} bytes at {:#x} lie behind the end of the file ({:#x})", place.text(), length, offset, file_.size());
      return false;
    }
    for (uint64_t c = offset / cluster_; c <= (offset + length - 1) / cluster_; ++c) ++expected_[c];
    return true;
  }
  bool aligned(uint64_t offset, const Place& place) {
    if (offset % cluster_ == 0) return true;
    error("{}: offset {:#x} is not at the start of a cluster", place.text(), offset);
    return false;
  }

  void read_refcounts() {
    const uint64_t per_block = cluster_ * 8 / refcount_bits_;
    result_.refcounts_per_block = per_block;
    result_.refcount_table_entries = refcount_table_clusters_ * cluster_ / 8;
    if (!aligned(refcount_table_, {"refcount table"}) ||
        !reference(refcount_table_, refcount_table_clusters_ * cluster_, {"refcount table"}))
      return;
    stored_.resize(expected_.size());
    for (uint64_t b = 0; b < result_.refcount_table_entries; ++b) {
      const uint64_t block = u64(refcount_table_ + b * 8);
      if (block == 0) continue;
      const Place place{"refcount block", b};
      if (!aligned(block, place) || !reference(block, cluster_, place)) continue;
      ++result_.refcount_blocks;
      for (uint64_t i = 0; i < per_block; ++i) {
        const uint64_t cluster = b * per_block + i;
        const uint64_t count = refcount_in(block, i);
        if (cluster < stored_.size())
          stored_[cluster] = count;
        else if (count != 0)
          result_.leaks.push_back(fmt::format("cluster {} behind the end of the file: refcount {}", cluster, count));
      }
    }
  }

  uint64_t refcount_in(uint64_t block, uint64_t index) const {
    if (refcount_bits_ >= 8) return number(block + index * (refcount_bits_ / 8), refcount_bits_ / 8);
    const uint64_t per_byte = 8 / refcount_bits_;
    return number(block + index / per_byte, 1) >> (index % per_byte * refcount_bits_) & ((1u << refcount_bits_) - 1);
  }
  uint64_t stored(uint64_t offset) const { return offset / cluster_ < stored_.size() ? stored_[offset / cluster_] : 0; }

  void check_copied(uint64_t entry, uint64_t offset, const Place& place) {
    const bool flag = (entry & kCopied) != 0;
    const bool alone = stored(offset) == 1;
    if (flag != alone)
      error("{}: COPIED is {}, but the refcount of {:#x} is {}", place.text(), flag ? "set" : "clear", offset,
            stored(offset));
  }

  // A data cluster in an external data file has the guest's own offset, and COPIED.
  void check_external(uint64_t entry, uint64_t guest, const Place& place) {
    if ((entry & (kOffset | kCopied)) == 0) return;
    if ((entry & kOffset) != guest)
      error("{}: {:#x} of the data file stands for guest offset {:#x}", place.text(), entry & kOffset, guest);
    if ((entry & kCopied) == 0) error("{}: a place in the data file without COPIED", place.text());
  }

  void walk_l1(uint64_t offset, uint64_t entries, bool active, std::string_view what) {
    if (entries == 0 || !aligned(offset, {what}) || !reference(offset, entries * 8, {what})) return;
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = u64(offset + i * 8);
      if ((entry & ~kCopied) == 0) continue;
      const uint64_t table = entry & kOffset;
      const Place place{what, i};
      if ((entry & ~(kOffset | kCopied)) != 0) error("{}: reserved bits in {:#x}", place.text(), entry);
      if (!aligned(table, place) || !reference(table, cluster_, place)) continue;
      if (active) {
        check_copied(entry, table, place);
        active_tables_.insert(table);
      }
      if (!tables_.insert(table).second) ++result_.shared_tables;
      table_guest_ = i * (cluster_ / (extended_ ? 16 : 8)) * cluster_;
      walk_l2(table, active, place);
    }
  }

  void walk_l2(uint64_t table, bool active, Place place) {
    const uint64_t step = extended_ ? 16 : 8;
    for (uint64_t at = table; at < table + cluster_; at += step) {
      const uint64_t entry = u64(at);
      const uint64_t bitmap = extended_ ? u64(at + 8) : 0;
      if (entry == 0 && bitmap == 0) continue;
      place.second = static_cast<int64_t>((at - table) / step);
      if ((entry & kCompressed) != 0) {
        ++result_.compressed;
        if (data_file_) error("{}: a compressed cluster beside an external data file", place.text());
        if ((entry & kCopied) != 0) error("{}: COPIED on a compressed cluster", place.text());
        if (bitmap != 0) error("{}: a compressed cluster with subclusters", place.text());
        const unsigned offset_bits = 62 - (cluster_bits_ - 8);
        const uint64_t start = entry & ((1ull << offset_bits) - 1);
        const uint64_t sectors = ((entry & ~(kCopied | kCompressed)) >> offset_bits) + 1;
        reference(start, (start / 512 + sectors) * 512 - start, place);
        continue;
      }
      const uint64_t offset = entry & kOffset;
      if (data_file_) {
        check_external(entry, table_guest_ + (at - table) / step * cluster_, place);
        continue;
      }
      if (extended_ && (bitmap & bitmap >> 32) != 0)
        error("{}: subclusters both allocated and zero: {:#x}", place.text(), bitmap);
      if (offset == 0) {
        if (extended_ && (bitmap & 0xffffffff) != 0)
          error("{}: subclusters without a cluster: {:#x}", place.text(), bitmap);
        continue;
      }
      if (!aligned(offset, place) || !reference(offset, cluster_, place)) continue;
      if (active)
        check_copied(entry, offset, place);
      else if ((entry & kCopied) != 0 && !active_tables_.contains(table))
        ++result_.copied_in_snapshots;
      if (!active && table_guest_ + (at - table) / step * cluster_ >= disk_end_)
        hash(result_.machine_states, offset, cluster_);
    }
  }

  void walk_snapshots() {
    const uint64_t count = u32(60);
    const uint64_t start = u64(64);
    if (count == 0) return;
    if (!aligned(start, {"snapshot table"})) return;
    uint64_t at = start;
    for (uint64_t i = 0; i < count; ++i) {
      if (at + 40 > file_.size()) return error("snapshot {} lies behind the end of the file", i);
      const std::string what = fmt::format("snapshot {}, L1 entry", i);
      disk_end_ = u32(at + 36) >= 16 ? u64(at + 48) : ~0ull;
      walk_l1(u64(at), u32(at + 8), false, what);
      at += 40 + u32(at + 36) + u16(at + 12) + u16(at + 14);
      at = (at + 7) / 8 * 8;
    }
    reference(start, at - start, {"snapshot table"});
  }

  void walk_bitmaps() {
    if (bitmaps_extension_ == 0 || (autoclear_ & 1) == 0) return;
    result_.bitmaps = u32(bitmaps_extension_);
    const uint64_t bytes = u64(bitmaps_extension_ + 8);
    const uint64_t directory = u64(bitmaps_extension_ + 16);
    if (!aligned(directory, {"bitmap directory"}) || !reference(directory, bytes, {"bitmap directory"})) return;
    // The places may change, the contents must not: the hash is of names, types and bits.
    for (uint64_t at = directory, i = 0; i < result_.bitmaps; ++i) {
      if (at + 24 > directory + bytes) return error("bitmap {} lies behind the end of the directory", i);
      const uint64_t table = u64(at);
      const uint64_t entries = u32(at + 8);
      const uint64_t tail = u16(at + 18) + u32(at + 20);
      hash(result_.bitmap_contents, at + 8, 16 + tail);
      const Place place{"table of bitmap", i};
      if (aligned(table, place) && reference(table, entries * 8, place)) {
        for (uint64_t k = 0; k < entries; ++k) {
          const uint64_t entry = u64(table + k * 8);
          const uint64_t offset = entry & kOffset;
          if (offset != 0 && aligned(offset, place) && reference(offset, cluster_, place))
            hash(result_.bitmap_contents, offset, cluster_);
          if (offset == 0) mix(result_.bitmap_contents, entry);
        }
      }
      at = (at + 24 + tail + 7) / 8 * 8;
    }
  }
  void hash(uint64_t& sum, uint64_t at, uint64_t length) const {
    for (uint64_t i = at; i < at + length; ++i) mix(sum, number(i, 1));
  }
  static void mix(uint64_t& sum, uint64_t value) { sum = (sum ^ value) * 0x100000001b3ull + 1; }

  void compare() {
    for (uint64_t c = 0; c < expected_.size(); ++c) {
      const uint64_t count = c < stored_.size() ? stored_[c] : 0;
      if (count == 0) ++result_.free_clusters;
      if (count < expected_[c])
        error("cluster {}: refcount {}, but {} references", c, count, expected_[c]);
      else if (count > expected_[c])
        result_.leaks.push_back(fmt::format("cluster {}: refcount {}, but {} references", c, count, expected_[c]));
    }
  }

  std::span<const std::byte> file_;
  Qcow2Scan result_;
  uint64_t version_ = 0;
  unsigned cluster_bits_ = 0;
  uint64_t cluster_ = 0;
  uint64_t size_ = 0;
  uint64_t l1_size_ = 0;
  uint64_t l1_offset_ = 0;
  uint64_t refcount_table_ = 0;
  uint64_t refcount_table_clusters_ = 0;
  unsigned refcount_bits_ = 16;
  bool extended_ = false;
  bool data_file_ = false;
  uint64_t autoclear_ = 0;
  uint64_t table_guest_ = 0;        // the guest offset that the table being walked begins at
  uint64_t disk_end_ = ~0ull;       // of the snapshot being walked; behind it lies its machine state
  uint64_t bitmaps_extension_ = 0;  // where its data lies
  std::vector<uint64_t> expected_;  // references, by cluster
  std::vector<uint64_t> stored_;    // refcounts, by cluster
  std::set<uint64_t> tables_;
  std::set<uint64_t> active_tables_;
};

}  // namespace

std::string Qcow2Scan::describe() const {
  std::string text;
  for (const std::string& e : errors) text += "ERROR " + e + "\n";
  for (const std::string& l : leaks) text += "leak  " + l + "\n";
  return text;
}

Qcow2Scan scan_qcow2(std::span<const std::byte> file) {
  return Scanner(file).run();
}

}  // namespace varve::test
