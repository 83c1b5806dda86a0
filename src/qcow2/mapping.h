// The mapping of one point of a disk — the active state, or a snapshot: its L1 table and a cache of the L2 tables below
// it. Answers where a guest offset lives; the write path changes tables through it. Not thread-safe by itself: the
// owner's metadata lock is held around every call.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/aligned_vector.h"
#include "base/endian.h"
#include "io/block_device.h"
#include "qcow2/table_entry.h"

namespace varve::qcow2 {

struct L2Table {
  uint64_t host_offset = 0;
  AlignedVector<be64> words;  // the table as on disk: one word per entry, two with extended L2
  bool dirty = false;

  uint64_t entry(const EntryFormat& f, uint64_t index) const { return words[index * f.entry_words()]; }
  uint64_t bitmap(uint64_t index) const { return words[index * 2 + 1]; }  // extended L2 only
};

// A stretch of guest bytes that is of one kind and, for data, contiguous in the file.
struct MappedRun {
  // kInvalid: bits that contradict each other. lookup() refuses it, so nobody else sees it.
  enum class Kind : uint8_t { kUnallocated, kZero, kData, kCompressed, kInvalid };
  Kind kind = Kind::kUnallocated;
  uint64_t length = 0;            // bytes; for kCompressed within one cluster
  uint64_t host_offset = 0;       // kData, and where has_place: where the first byte is
  uint64_t compressed_entry = 0;  // kCompressed: the L2 entry
  bool has_place = false;         // a cluster of the file is kept for it, be it read or not; never for kCompressed
};

// What makes neighbours one run: the same kind (and for data, the same stretch of the file), or the place, too, that
// zeroes and unallocated subclusters may have.
enum class RunJoin : uint8_t { kByKind, kByPlace };

class Mapping {
 public:
  // Reads the L1 table. Both outlive the mapping.
  static Result<Mapping> open(BlockDevice& file, const EntryFormat& format, uint64_t l1_table_offset, uint32_t l1_size);

  const EntryFormat& format() const { return format_; }
  std::vector<uint64_t>& l1() { return l1_; }  // host byte order
  const std::vector<uint64_t>& l1() const { return l1_; }

  uint64_t entries_per_table() const { return format_.cluster_size() / (uint64_t{8} * format_.entry_words()); }
  uint64_t l1_index(uint64_t guest_offset) const { return guest_offset >> format_.cluster_bits >> l2_bits_; }
  uint64_t l2_index(uint64_t guest_offset) const {
    return (guest_offset >> format_.cluster_bits) & (entries_per_table() - 1);
  }
  uint64_t guest_cluster(uint64_t l1_index, uint64_t l2_index) const {
    return (l1_index << l2_bits_ | l2_index) << format_.cluster_bits;
  }

  // The L2 table below l1()[index], from the cache or read and checked; nullptr where there is none. The pointer is
  // valid until the next call of trim() or put().
  Result<L2Table*> table(uint64_t index);
  // Takes a table that the write path made.
  L2Table* put(uint64_t index, L2Table table);
  // Lets clean tables go, oldest first, until at most `max_bytes` of tables are held.
  void trim(size_t max_bytes);
  // Forgets all tables, changed ones included.
  void forget_tables() {
    tables_.clear();
    order_.clear();
  }
  size_t cached_bytes() const { return tables_.size() * format_.cluster_size(); }
  const std::unordered_map<uint64_t, std::unique_ptr<L2Table>>& cached() const { return tables_; }

  // What is at `guest_offset`, for at most `max_length` bytes (> 0).
  Result<MappedRun> lookup(uint64_t guest_offset, uint64_t max_length, RunJoin join = RunJoin::kByKind);

  // The L2 table offset of an L1 entry, checked; 0 for none.
  Result<uint64_t> table_offset(uint64_t index) const;
  const std::string& image_name() const { return file_->name(); }

 private:
  Mapping(BlockDevice& file, const EntryFormat& format) : file_(&file), format_(format) {}
  MappedRun classify(const L2Table& table, uint64_t index, uint64_t in_cluster) const;
  Result<void> check(const MappedRun& run, uint64_t guest_offset) const;
  void extend(MappedRun& run, const L2Table& table, uint64_t guest_offset, uint64_t max_length) const;

  BlockDevice* file_;
  EntryFormat format_;
  uint32_t l2_bits_ = 0;
  std::vector<uint64_t> l1_;
  std::unordered_map<uint64_t, std::unique_ptr<L2Table>> tables_;
  std::deque<uint64_t> order_;  // of arrival
};

}  // namespace varve::qcow2
