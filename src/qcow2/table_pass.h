// Whole-table passes over L2 tables: what a snapshot operation does to the clusters below an L1 table, thousands of
// tables at a time and run by run instead of entry by entry.
//
// Passes that count write nothing. Only when they have gone through everything that a change touches, and found every
// cluster counted, are tables written: to new clusters, because nothing of the present state may change. So a cluster
// that is in use although its refcount says otherwise is found before it could be taken for a free one.
//
// Long passes read the next tables, and write the last ones, on another thread while these are worked on.
#pragma once

#include <cstdint>
#include <future>
#include <span>
#include <vector>

#include "base/aligned_vector.h"
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
  // All outlive the pass.
  TablePass(BlockDevice& file, const EntryFormat& format, Refcounts& refcounts)
      : file_(file), format_(format), refcounts_(refcounts) {}

  // One more reference to everything below (not to the tables themselves). Returns, for each table, 1 where it carries
  // COPIED flags.
  Result<std::vector<uint8_t>> add_references(std::span<const TableReference> references);
  // One reference less to everything below (not to the tables themselves).
  Result<void> drop_references(std::span<const TableReference> references, PassTotals* totals = nullptr);

  // Writes the tables anew without COPIED flags. Returns where each went; new tables have refcount 1, the counts of the
  // old ones are left to the caller.
  Result<std::vector<uint64_t>> write_without_copied(std::span<const TableReference> references);
  // Sets the COPIED flag of every data cluster whose refcount is 1, and clears it elsewhere; tables that change by it
  // are written anew. Returns as write_without_copied(), 0 for tables that stayed.
  Result<std::vector<uint64_t>> write_with_fresh_copied(std::span<const TableReference> references);

  // The clusters that were written to, {first, count}.
  const std::vector<std::pair<uint64_t, uint64_t>>& written() const { return written_; }

 private:
  using Table = std::span<be64>;
  using Batch = AlignedVector<be64>;  // tables end to end

  Table table_of(Batch& batch, size_t index) const {
    return std::span(batch).subspan(index * words_per_table(), words_per_table());
  }
  size_t words_per_table() const { return format_.cluster_size() / 8; }
  Result<void> read_batch(std::span<const TableReference> references, Batch& batch);
  // visit(batch, number of tables in it, index of its first table in `references`)
  template <typename Visit>
  Result<void> for_each_batch(std::span<const TableReference> references, Visit visit);
  template <typename Change>
  Result<void> for_each_run(const TableReference& reference, Table table, Change change, PassTotals* totals);
  // Writes the marked tables of `batch`, which is used up, next to each other, and notes where.
  Result<void> write_marked(Batch& batch, std::span<const uint8_t> marked, std::span<uint64_t> new_offsets);
  Result<void> finish_writing();
  bool refresh_table(Table table);

  BlockDevice& file_;
  EntryFormat format_;
  Refcounts& refcounts_;
  std::future<Result<void>> writing_;
  Batch writing_batch_;
  std::vector<std::pair<uint64_t, uint64_t>> written_;
};

}  // namespace varve::qcow2
