// Whole-table passes over L2 tables: what a snapshot operation does to the clusters below an L1 table, thousands of
// tables at a time and run by run instead of entry by entry. Nothing of the present state is written to: tables that
// change get new clusters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/endian.h"
#include "qcow2/refcounts.h"
#include "qcow2/table_entry.h"

namespace varve::qcow2 {

// An L1 entry that leads somewhere.
struct TableReference {
  uint64_t l1_index = 0;
  uint64_t host_offset = 0;
};

// The non-empty entries of an L1 table (host byte order), checked. kCorrupt for misaligned ones or reserved bits.
Result<std::vector<TableReference>> table_references(std::span<const uint64_t> l1, const EntryFormat& format,
                                                     const std::string& image);

// Counts of what a pass met.
struct PassTotals {
  uint64_t data_clusters = 0;
  uint64_t compressed_bytes = 0;
};

class TablePass {
 public:
  TablePass(BlockDevice& file, const EntryFormat& format, Refcounts& refcounts)
      : file_(file), format_(format), refcounts_(refcounts) {}

  // One more reference to everything below; tables that carry COPIED flags are written anew without them. Where a
  // table went is returned, in order: its new offset, or 0 where it stayed. New tables have refcount 1; the counts of
  // tables are otherwise left to the caller.
  Result<std::vector<uint64_t>> add_references(std::span<const TableReference> references);
  // One reference less to everything below (not to the tables themselves).
  Result<void> drop_references(std::span<const TableReference> references, PassTotals* totals = nullptr);
  // Sets the COPIED flag of every data cluster whose refcount is 1, and clears it elsewhere; changed tables are written
  // anew. Returns as add_references().
  Result<std::vector<uint64_t>> refresh_copied(std::span<const TableReference> references);

  // The clusters that were written to, as ranges of the file.
  const std::vector<std::pair<uint64_t, uint64_t>>& written() const { return written_; }

 private:
  Result<void> read_batch(std::span<const TableReference> batch);
  std::span<be64> words(size_t table) {
    return std::span(buffer_).subspan(table * words_per_table(), words_per_table());
  }
  size_t words_per_table() const { return format_.cluster_size() / 8; }
  size_t tables_per_batch() const;
  template <typename Change>
  Result<void> for_each_run(const TableReference& reference, std::span<const be64> words, Change change,
                            PassTotals* totals);
  Result<void> write_changed(std::span<const uint8_t> changed, std::span<uint64_t> new_offsets);
  bool refresh_table(std::span<be64> words);

  BlockDevice& file_;
  EntryFormat format_;
  Refcounts& refcounts_;
  std::vector<be64> buffer_;
  std::vector<std::pair<uint64_t, uint64_t>> written_;  // {first cluster, count}
};

}  // namespace varve::qcow2
