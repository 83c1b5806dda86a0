// Whole-table passes over L2 tables: what a snapshot operation does to the clusters below an L1 table.
//
// Passes that count write nothing. Only when they have gone through everything that a change touches, and found every
// cluster counted, are tables written: to new clusters, because nothing of the present state may change. So a cluster
// that is in use although its refcount says otherwise is found before it could be taken for a free one.
//
// Long passes write the last tables on another thread while the next ones are worked on.
#pragma once

#include <cstdint>
#include <future>
#include <span>
#include <vector>

#include "qcow2/refcounts.h"
#include "qcow2/table_scan.h"

namespace varve::qcow2 {

class TablePass : private TableScan {
 public:
  // All outlive the pass.
  TablePass(BlockDevice& file, const EntryFormat& format, Refcounts& refcounts)
      : TableScan(file, format), refcounts_(refcounts) {}

  // One more reference to everything below (not to the tables themselves). Returns, for each table, 1 where it carries
  // COPIED flags.
  Result<std::vector<uint8_t>> add_references(std::span<const TableReference> references);
  // One reference less to everything below (not to the tables themselves).
  Result<void> drop_references(std::span<const TableReference> references, TableTotals* totals = nullptr);

  // Writes the tables anew without COPIED flags. Returns where each went; new tables have refcount 1, the counts of the
  // old ones are left to the caller.
  Result<std::vector<uint64_t>> write_without_copied(std::span<const TableReference> references);
  // Sets the COPIED flag of every data cluster whose refcount is 1, and clears it elsewhere; tables that change by it
  // are written anew. Returns as write_without_copied(), 0 for tables that stayed.
  Result<std::vector<uint64_t>> write_with_fresh_copied(std::span<const TableReference> references);

  // The clusters that were written to, {first, count}.
  const std::vector<std::pair<uint64_t, uint64_t>>& written() const { return written_; }

 private:
  // Writes the marked tables of `batch`, which is used up, next to each other, and notes where.
  Result<void> write_marked(Batch& batch, std::span<const uint8_t> marked, std::span<uint64_t> new_offsets);
  Result<void> finish_writing();
  bool refresh_table(Table table);

  Refcounts& refcounts_;
  std::future<Result<void>> writing_;
  Batch writing_batch_;
  std::vector<std::pair<uint64_t, uint64_t>> written_;
};

}  // namespace varve::qcow2
