// Reading of whole L2 tables, thousands at a time and run by run instead of entry by entry. Long scans read the next
// tables on another thread while these are worked on.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <future>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_vector.h"
#include "base/endian.h"
#include "io/block_device.h"
#include "qcow2/corruption.h"
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

// Counts of what a scan met.
struct TableTotals {
  uint64_t data_clusters = 0;
  uint64_t compressed_bytes = 0;
};

class TableScan {
 public:
  using Table = std::span<be64>;
  using Batch = AlignedVector<be64>;  // tables end to end

  // The device outlives the scan.
  TableScan(BlockDevice& file, const EntryFormat& format) : file_(file), format_(format) {}

  size_t words_per_table() const { return format_.cluster_size() / 8; }
  Table table_of(Batch& batch, size_t index) const {
    return std::span(batch).subspan(index * words_per_table(), words_per_table());
  }
  // Neighbours in the file in one read. kCorrupt for a table behind the end of the file.
  Result<void> read_batch(std::span<const TableReference> references, Batch& batch) const;
  // visit(batch, number of tables in it, index of its first table in `references`); it may use the batch up.
  template <typename Visit>
  Result<void> for_each_batch(std::span<const TableReference> references, Visit visit) const;
  // Calls visit(first cluster, count) for every run of consecutive clusters that the table refers to, and adds them to
  // `totals` if there are any.
  template <typename Visit>
  Result<void> for_each_run(const TableReference& reference, Table table, Visit visit, TableTotals* totals) const;

 protected:
  static constexpr size_t kBatchBytes = size_t{2} << 20;  // stays in the processor's cache between read and use

  BlockDevice& file_;
  EntryFormat format_;
};

template <typename Visit>
Result<void> TableScan::for_each_batch(std::span<const TableReference> references, Visit visit) const {
  const size_t step = std::max<size_t>(1, kBatchBytes / format_.cluster_size());
  const auto part = [&](size_t at) { return references.subspan(at, std::min(step, references.size() - at)); };
  Batch batch;
  Batch next;
  if (!references.empty()) TRY(read_batch(part(0), batch));
  for (size_t at = 0; at < references.size(); at += step) {
    std::future<Result<void>> reading;
    if (at + step < references.size())
      reading = std::async(std::launch::async, [&] { return read_batch(part(at + step), next); });
    TRY(visit(batch, part(at).size(), at));
    if (reading.valid()) TRY(reading.get());
    std::swap(batch, next);
  }
  return {};
}

template <typename Visit>
Result<void> TableScan::for_each_run(const TableReference& reference, Table words, Visit visit,
                                     TableTotals* totals) const {
  const uint64_t cluster_size = format_.cluster_size();
  const uint32_t step = format_.entry_words();
  uint64_t run_start = 0;
  uint64_t run_end = 0;
  const auto finish_run = [&]() -> Result<void> {
    if (run_end == run_start) return {};
    const uint64_t count = (run_end - run_start) >> format_.cluster_bits;
    if (totals != nullptr) totals->data_clusters += count;
    return visit(run_start >> format_.cluster_bits, count);
  };
  for (size_t i = 0; i < words.size(); i += step) {
    const uint64_t entry = words[i];
    if (entry == 0) continue;
    if ((entry & kEntryCompressed) != 0) {
      const CompressedRange range = format_.compressed_range(entry);
      const uint64_t first = range.offset >> format_.cluster_bits;
      const uint64_t last = (range.offset + range.length - 1) >> format_.cluster_bits;
      if (totals != nullptr) totals->compressed_bytes += range.length;
      TRY(visit(first, last - first + 1));
      continue;
    }
    const uint64_t offset = entry & kOffsetMask;
    if (offset == 0) continue;
    if (offset == run_end) {
      run_end += cluster_size;
      continue;
    }
    if ((offset & (cluster_size - 1)) != 0)
      return corruption(file_.name(), reference.host_offset + i * 8,
                        fmt::format("L2 entry {} of the table at offset {:#x} ({:#x}) is not cluster-aligned", i / step,
                                    reference.host_offset, entry));
    TRY(finish_run());
    run_start = offset;
    run_end = offset + cluster_size;
  }
  return finish_run();
}

}  // namespace varve::qcow2
