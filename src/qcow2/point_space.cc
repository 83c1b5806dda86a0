// What each point of an image holds, and what any row of neighbouring points holds alone.
//
// Of every cluster of the file only the first and the last point are kept that reach it: points from a to b are the
// only ones that hold it exactly if a <= first and last <= b. A table is looked at once for all points that have it.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/checked.h"
#include "qcow2/image_state.h"
#include "qcow2/table_scan.h"

namespace varve::qcow2 {

namespace {

// Of whom a cluster or a table is: the first and the last point that reach it.
struct Span {
  uint16_t first = UINT16_MAX;
  uint16_t last = 0;
  bool is_held() const { return first <= last; }
  void add(const Span& other) {
    first = std::min(first, other.first);
    last = std::max(last, other.last);
  }
};

// By cluster of the file. Memory grows with the parts of the file that are held.
class Holders {
 public:
  explicit Holders(uint64_t clusters) : clusters_(clusters) {}

  // False where there are no such clusters.
  bool add(uint64_t first, uint64_t count, const Span& span) {
    if (first >= clusters_ || count > clusters_ - first) return false;
    for (uint64_t cluster = first; cluster < first + count;) {
      std::unique_ptr<Span[]>& chunk = chunks_[cluster / kPerChunk];
      if (!chunk) chunk = std::make_unique<Span[]>(kPerChunk);
      const uint64_t at = cluster % kPerChunk;
      const uint64_t here = std::min(kPerChunk - at, first + count - cluster);
      for (uint64_t i = 0; i < here; ++i) chunk[at + i].add(span);
      cluster += here;
    }
    return true;
  }

  std::map<std::pair<uint32_t, uint32_t>, uint64_t> bytes_by_span(uint64_t cluster_size) const {
    std::map<std::pair<uint32_t, uint32_t>, uint64_t> held;
    for (const auto& [index, chunk] : chunks_) {
      for (uint64_t i = 0; i < kPerChunk;) {
        const Span span = chunk[i];
        uint64_t end = i + 1;  // neighbours are mostly of the same points
        while (end < kPerChunk && chunk[end].first == span.first && chunk[end].last == span.last) ++end;
        if (span.is_held()) held[{span.first, span.last}] += (end - i) * cluster_size;
        i = end;
      }
    }
    return held;
  }

 private:
  static constexpr uint64_t kPerChunk = 65536;
  uint64_t clusters_;
  std::unordered_map<uint64_t, std::unique_ptr<Span[]>> chunks_;
};

struct PointTables {
  uint64_t l1_offset = 0;
  uint64_t l1_clusters = 0;
  std::vector<TableReference> references;
};

uint64_t bytes_of(const TableTotals& totals, uint64_t cluster_size) {
  return totals.data_clusters * cluster_size + totals.compressed_bytes;
}

// What the same place of two tables has in common.
uint64_t common_bytes(std::span<const be64> one, std::span<const be64> other, const EntryFormat& format) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < one.size(); i += format.entry_words()) {
    const uint64_t entry = one[i] & ~kEntryCopied;
    if (entry != (other[i] & ~kEntryCopied) || entry == 0) continue;
    if ((entry & kEntryCompressed) != 0) {
      bytes += format.compressed_range(entry).length;
    } else if ((entry & kOffsetMask) != 0) {
      bytes += format.cluster_size();
    }
  }
  return bytes;
}

class Counting {
 public:
  Counting(BlockDevice& file, const EntryFormat& format, uint64_t clusters)
      : file_(file), format_(format), scan_(file, format), holders_(clusters) {}

  // The tables that this point has.
  Result<PointTables> tables_of(uint64_t l1_offset, uint32_t l1_size) const {
    const Mapping mapping = TRY(Mapping::open(file_, format_, l1_offset, l1_size));
    return PointTables{.l1_offset = l1_offset,
                       .l1_clusters = div_round_up(uint64_t{l1_size} * 8, format_.cluster_size()),
                       .references = TRY(table_references(mapping.l1(), format_, file_.name()))};
  }
  Result<void> note(const PointTables& tables, uint16_t point) {
    const Span own{.first = point, .last = point};
    TRY(hold(tables.l1_offset / format_.cluster_size(), tables.l1_clusters, own));
    for (const TableReference& reference : tables.references) tables_[reference.host_offset].span.add(own);
    return {};
  }
  Result<void> look_at_tables();
  Result<PointSpace> space_of(const PointTables& tables) const;
  Result<uint64_t> shared(const PointTables& point, const PointTables& previous) const;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> held() const {
    return holders_.bytes_by_span(format_.cluster_size());
  }

 private:
  struct Table {
    Span span;
    TableTotals totals;
  };
  Result<TableTotals> totals_of(const TableReference& reference) const {
    const auto found = tables_.find(reference.host_offset);
    if (found != tables_.end()) return found->second.totals;
    return corruption(file_.name(), reference.host_offset, "a table was changed while it was looked at");
  }
  Result<void> hold(uint64_t first, uint64_t count, const Span& span) {
    if (count == 0 || holders_.add(first, count, span)) return {};
    return corruption(file_.name(), first * format_.cluster_size(), "a reference leads behind the end of the file");
  }

  BlockDevice& file_;
  EntryFormat format_;
  TableScan scan_;
  Holders holders_;
  std::unordered_map<uint64_t, Table> tables_;  // by where they are
};

Result<void> Counting::look_at_tables() {
  std::vector<TableReference> all;
  all.reserve(tables_.size());
  for (const auto& [offset, table] : tables_) all.push_back({.l1_index = 0, .host_offset = offset});
  std::ranges::sort(all, {}, &TableReference::host_offset);
  return scan_.for_each_batch(all, [&](TableScan::Batch& batch, size_t count, size_t at) -> Result<void> {
    for (size_t i = 0; i < count; ++i) {
      Table& table = tables_.at(all[at + i].host_offset);
      TRY(hold(all[at + i].host_offset / format_.cluster_size(), 1, table.span));
      TRY(scan_.for_each_run(
          all[at + i], scan_.table_of(batch, i),
          [&](uint64_t first, uint64_t n) -> Result<void> {
            // In an external data file are no clusters of this one.
            return format_.data_file ? Result<void>() : hold(first, n, table.span);
          },
          &table.totals));
    }
    return {};
  });
}

Result<PointSpace> Counting::space_of(const PointTables& tables) const {
  PointSpace space;
  space.table_bytes = (tables.l1_clusters + tables.references.size()) * format_.cluster_size();
  space.referenced_bytes = space.table_bytes;
  for (const TableReference& reference : tables.references) {
    space.referenced_bytes += bytes_of(TRY(totals_of(reference)), format_.cluster_size());
  }
  return space;
}

Result<uint64_t> Counting::shared(const PointTables& point, const PointTables& previous) const {
  uint64_t bytes = 0;
  TableScan::Batch one;
  TableScan::Batch other;
  auto before = previous.references.begin();
  for (const TableReference& reference : point.references) {
    while (before != previous.references.end() && before->l1_index < reference.l1_index) ++before;
    if (before == previous.references.end()) break;
    if (before->l1_index != reference.l1_index) continue;
    if (before->host_offset == reference.host_offset) {
      bytes += format_.cluster_size() + bytes_of(TRY(totals_of(reference)), format_.cluster_size());
      continue;
    }
    TRY(scan_.read_batch({&reference, 1}, one));
    TRY(scan_.read_batch({&*before, 1}, other));
    bytes += common_bytes(one, other, format_);
  }
  return bytes;
}

}  // namespace

PointSpaces::PointSpaces(std::vector<PointSpace> points, std::map<std::pair<uint32_t, uint32_t>, uint64_t> held)
    : points_(std::move(points)), held_(std::move(held)) {
  for (size_t point = 0; point < points_.size(); ++point)
    points_[point].exclusive_bytes = exclusive_bytes(point, point);
}

uint64_t PointSpaces::exclusive_bytes(size_t first, size_t last) const {
  uint64_t bytes = 0;
  for (auto held = held_.lower_bound({static_cast<uint32_t>(first), 0}); held != held_.end(); ++held) {
    if (held->first.first > last) break;
    if (held->first.second <= last) bytes += held->second;
  }
  return bytes;
}

Result<PointSpaces> Image::point_spaces() {
  if (state_->writer) TRY(flush());
  State& s = *state_;
  if (s.snapshots.size() > UINT16_MAX - 1) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{} has {} snapshots, and the space of more than {} can't be told", name(),
                                  s.snapshots.size(), UINT16_MAX - 1));
  }
  const EntryFormat format(s.header);
  Counting counting(*s.file, format, div_round_up(TRY(s.file->size()), format.cluster_size()));
  const auto tables_of = [&](size_t point) -> Result<PointTables> {
    if (point == s.snapshots.size()) return counting.tables_of(s.header.l1_table_offset, s.header.l1_size);
    const Snapshot& snapshot = s.snapshots[point];
    if (snapshot.fault && !snapshot.fault->table_is_known) return fault_of(name(), s.header, snapshot);
    return counting.tables_of(snapshot.l1_table_offset, snapshot.l1_size);
  };
  for (size_t point = 0; point <= s.snapshots.size(); ++point) {
    TRY(counting.note(TRY(tables_of(point)), static_cast<uint16_t>(point)));
  }
  TRY(counting.look_at_tables());
  std::vector<PointSpace> points;
  PointTables previous;
  for (size_t point = 0; point <= s.snapshots.size(); ++point) {
    PointTables tables = TRY(tables_of(point));
    points.push_back(TRY(counting.space_of(tables)));
    points.back().shared_with_previous_bytes = TRY(counting.shared(tables, previous));
    previous = std::move(tables);
  }
  PointSpaces spaces(std::move(points), counting.held());
  return spaces;
}

}  // namespace varve::qcow2
