// Where two points of an image differ, by their tables.
#include <algorithm>

#include "qcow2/image_state.h"
#include "qcow2/table_scan.h"

namespace varve::qcow2 {

namespace {

// Sorted by what is added last; neighbours become one.
class Ranges {
 public:
  explicit Ranges(uint64_t end) : end_(end) {}
  void add(uint64_t offset, uint64_t length) {
    if (offset >= end_) return;
    length = std::min(length, end_ - offset);
    if (!ranges_.empty() && ranges_.back().first + ranges_.back().second == offset) {
      ranges_.back().second += length;
    } else {
      ranges_.emplace_back(offset, length);
    }
  }
  std::vector<std::pair<uint64_t, uint64_t>> take() { return std::move(ranges_); }

 private:
  uint64_t end_;
  std::vector<std::pair<uint64_t, uint64_t>> ranges_;
};

// What an entry shows of the guest, as far as the entry tells: equal for equal contents, whatever else it says.
struct Shown {
  uint64_t place = 0;
  uint64_t subclusters = 0;
  bool operator==(const Shown&) const = default;
};

Shown shown(const EntryFormat& format, bool has_backing, std::span<const be64> table, size_t at) {
  const uint64_t entry = at < table.size() ? uint64_t{table[at]} & ~kEntryCopied : 0;
  if (format.extended) {
    const uint64_t subclusters = at < table.size() ? uint64_t{table[at + 1]} : 0;
    return {.place = (subclusters & kAllSubclusters) != 0 || (entry & kEntryCompressed) != 0 ? entry : 0,
            .subclusters = has_backing ? subclusters : subclusters & kAllSubclusters};
  }
  switch (format.kind(entry)) {
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      return {.place = has_backing ? kEntryZero : 0};
    case ClusterKind::kUnallocated:
      return {};
    case ClusterKind::kData:
    case ClusterKind::kCompressed:
      return {.place = entry};
  }
  return {};
}

}  // namespace

uint64_t PointDifference::differing_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [offset, length] : ranges) bytes += length;
  return bytes;
}

Result<PointDifference> Image::compare_points(size_t one, size_t other) {
  if (state_->writer) TRY(flush());
  State& s = *state_;
  const EntryFormat format(s.header);
  if (format.data_file) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{} keeps its disk in an external data file, which no snapshot shares", name()));
  }
  const auto open = [&](size_t point) -> Result<Mapping> {
    if (point == s.snapshots.size()) {
      return Mapping::open(*s.file, format, s.header.l1_table_offset, s.header.l1_size);
    }
    const Snapshot& snapshot = s.snapshots[point];
    if (snapshot.fault) return fault_of(name(), s.header, snapshot);
    return Mapping::open(*s.file, format, snapshot.l1_table_offset, snapshot.l1_size);
  };
  const auto size_of = [&](size_t point) {
    return point == s.snapshots.size() ? s.header.size : s.snapshots[point].disk_size.value_or(s.header.size);
  };
  CHECK(one <= s.snapshots.size() && other <= s.snapshots.size());
  const Mapping first = TRY(open(one));
  const Mapping second = TRY(open(other));
  const auto first_tables = TRY(table_references(first.l1(), format, name()));
  const auto second_tables = TRY(table_references(second.l1(), format, name()));
  const bool has_backing = s.header.backing_file.has_value();
  const uint64_t least = std::min(size_of(one), size_of(other));
  const uint64_t most = std::max(size_of(one), size_of(other));

  const TableScan scan(*s.file, format);
  TableScan::Batch table;
  TableScan::Batch other_table;
  Ranges ranges(least);  // behind the end of the smaller one all is different
  auto a = first_tables.begin();
  auto b = second_tables.begin();
  while (a != first_tables.end() || b != second_tables.end()) {
    const uint64_t index = std::min(a == first_tables.end() ? UINT64_MAX : a->l1_index,
                                    b == second_tables.end() ? UINT64_MAX : b->l1_index);
    const auto here = [&](auto& at, const auto& tables, TableScan::Batch& into) -> Result<uint64_t> {
      into.clear();
      if (at == tables.end() || at->l1_index != index) return uint64_t{0};
      return (at++)->host_offset;
    };
    const uint64_t first_offset = TRY(here(a, first_tables, table));
    const uint64_t second_offset = TRY(here(b, second_tables, other_table));
    if (first_offset == second_offset || first.guest_cluster(index, 0) >= least) continue;
    const auto read = [&](uint64_t offset, TableScan::Batch& into) -> Result<void> {
      const TableReference reference{.l1_index = index, .host_offset = offset};
      return offset == 0 ? Result<void>() : scan.read_batch({&reference, 1}, into);
    };
    TRY(read(first_offset, table));
    TRY(read(second_offset, other_table));
    for (size_t at = 0; at < scan.words_per_table(); at += format.entry_words()) {
      if (shown(format, has_backing, table, at) == shown(format, has_backing, other_table, at)) continue;
      ranges.add(first.guest_cluster(index, at / format.entry_words()), format.cluster_size());
    }
  }
  PointDifference difference{.ranges = ranges.take()};
  if (most > least) difference.ranges.emplace_back(least, most - least);
  return difference;
}

}  // namespace varve::qcow2
