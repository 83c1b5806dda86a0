#include "qcow2/point_watch.h"

#include <errno.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/padded_read.h"
#include "qcow2/table_entry.h"

namespace varve::qcow2 {
namespace {

// The header's bytes 60 to 71: how many snapshots there are, and where their table is.
constexpr uint64_t kTablePlace = 60;
constexpr size_t kTablePlaceBytes = 12;

// Tables that are read while somebody writes another one in their place make no sense for a moment.
constexpr int kTries = 20;

// Names may change; what makes a snapshot the one that it is does not. The clock has nanoseconds, so that one that is
// deleted and taken again is another one even where it gets the same id and the same clusters.
bool is_same(const Snapshot& a, const Snapshot& b) {
  return a.id == b.id && a.l1_table_offset == b.l1_table_offset && a.l1_size == b.l1_size && a.date_sec == b.date_sec &&
         a.date_nsec == b.date_nsec && a.vm_clock_nsec == b.vm_clock_nsec && a.vm_state_size == b.vm_state_size;
}

// Bytes of the table up to and including entry `index`; nothing where it ends before.
std::optional<uint64_t> end_of_entry(std::span<const std::byte> table, size_t index) {
  uint64_t at = 0;
  for (size_t i = 0; i <= index; ++i) {
    if (at + 40 > table.size()) return std::nullopt;
    const std::byte* entry = table.data() + at;
    const uint64_t length =
        40 + load_be<uint32_t>(entry + 36) + load_be<uint16_t>(entry + 12) + load_be<uint16_t>(entry + 14);
    at += align_up(length, 8);
  }
  return std::min<uint64_t>(at, table.size());
}

}  // namespace

Error PointWatch::gone(const std::string& how) {
  is_gone_ = true;
  Error error = make_error(ErrorKind::kIo, fmt::format("{}: snapshot '{}' (id {}) {} while it was being read",
                                                       file_.name(), snapshot_.name, snapshot_.id, how));
  error.sys_errno = ESTALE;
  error.path = file_.name();
  return error;
}

// The table as it is now, read so often that it did not change meanwhile.
Result<PointWatch::Place> PointWatch::find() {
  std::optional<Error> failure;
  for (int i = 0; i < kTries; ++i) {
    std::array<std::byte, kTablePlaceBytes> before;
    std::array<std::byte, kTablePlaceBytes> after;
    TRY(file_.read_at(kTablePlace, before));
    const auto header = read_header(file_);
    const auto table = header ? read_snapshot_table(file_, *header) : Result<SnapshotTable>(header.error());
    Place place;
    std::optional<size_t> index;
    if (table) {
      const auto found =
          std::ranges::find_if(table->snapshots, [&](const Snapshot& s) { return is_same(s, snapshot_); });
      if (found != table->snapshots.end()) index = static_cast<size_t>(found - table->snapshots.begin());
      place.nb_snapshots = header->nb_snapshots;
      place.snapshots_offset = header->snapshots_offset;
      place.bytes.resize(table->bytes);
      TRY(read_padded(file_, place.snapshots_offset, place.bytes));
    }
    TRY(file_.read_at(kTablePlace, after));
    const bool stood_still = before == after && table && load_be<uint32_t>(before.data()) == place.nb_snapshots &&
                             load_be<uint64_t>(before.data() + 4) == place.snapshots_offset;
    if (!stood_still) {
      if (!table) failure = table.error();
      continue;
    }
    if (!index) return gone("has been deleted");
    const auto end = end_of_entry(place.bytes, *index);
    if (!end) continue;  // the bytes were read once more after the entries were understood
    place.bytes.resize(*end);
    return place;
  }
  if (failure) return *std::move(failure);
  return gone("changed its place again and again");
}

Result<bool> PointWatch::is_unchanged(const Place& place) {
  std::array<std::byte, kTablePlaceBytes> header;
  TRY(file_.read_at(kTablePlace, header));
  if (load_be<uint32_t>(header.data()) != place.nb_snapshots) return false;
  if (load_be<uint64_t>(header.data() + 4) != place.snapshots_offset) return false;
  std::array<std::byte, 4096> piece;
  for (size_t at = 0; at < place.bytes.size(); at += piece.size()) {
    const auto there = std::span(piece).first(std::min(piece.size(), place.bytes.size() - at));
    TRY(file_.read_at(place.snapshots_offset + at, there));
    if (std::memcmp(there.data(), &place.bytes[at], there.size()) != 0) return false;
  }
  return true;
}

// Varve's own commits may put a snapshot's tables elsewhere, and give the old ones away, while its entry stays or comes
// back to the same place: a table that was reached through an old L1 entry may be anything.
Result<bool> PointWatch::has_l1_entries(uint64_t offset, uint64_t length) {
  if (length == 0) return true;
  const uint64_t first = offset / bytes_per_l1_entry_;
  const uint64_t end = std::min<uint64_t>((offset + length - 1) / bytes_per_l1_entry_ + 1, l1_.size());
  std::array<be64, 64> piece;
  for (uint64_t at = first; at < end; at += piece.size()) {
    const auto there = std::span(piece).first(std::min<uint64_t>(piece.size(), end - at));
    TRY(read_padded(file_, snapshot_.l1_table_offset + at * 8, std::as_writable_bytes(there)));
    for (size_t i = 0; i < there.size(); ++i) {
      if ((there[i] & ~kEntryCopied) != l1_[at + i]) return false;
    }
  }
  return true;
}

Result<std::unique_ptr<PointWatch>> PointWatch::begin(BlockDevice& file, const Header& header,
                                                      const Snapshot& snapshot) {
  std::unique_ptr<PointWatch> watch(new PointWatch(file, header, snapshot));
  std::vector<be64> l1(snapshot.l1_size);
  TRY(read_padded(file, snapshot.l1_table_offset, std::as_writable_bytes(std::span(l1))));
  watch->l1_.reserve(l1.size());
  for (const uint64_t entry : l1) watch->l1_.push_back(entry & ~kEntryCopied);
  // After the L1 table has been read: it is the snapshot's.
  watch->place_ = std::make_shared<const Place>(TRY(watch->find()));
  return watch;
}

Result<void> PointWatch::check(uint64_t offset, uint64_t length) {
  if (is_gone_) return gone("has been deleted, or changed,");
  std::shared_ptr<const Place> place;
  {
    const std::lock_guard guard(lock_);
    place = place_;
  }
  // The entries first: that the snapshot is there afterwards says that they were its own.
  if (!TRY(has_l1_entries(offset, length))) {
    TRY(find());  // what it is that happened
    return gone("has been moved by another program");
  }
  if (TRY(is_unchanged(*place))) return {};
  place = std::make_shared<const Place>(TRY(find()));
  const std::lock_guard guard(lock_);
  place_ = std::move(place);
  return {};
}

}  // namespace varve::qcow2
