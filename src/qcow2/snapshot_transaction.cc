#include "qcow2/snapshot_transaction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "qcow2/bitmap_directory.h"
#include "qcow2/corruption.h"
#include "qcow2/image_state.h"
#include "qcow2/padded_read.h"
#include "qcow2/table_pass.h"

namespace varve::qcow2 {
namespace {

std::vector<be64> big_endian(std::span<const uint64_t> values) {
  return {values.begin(), values.end()};
}

// Ranges of clusters as byte ranges, sorted, neighbours merged.
std::vector<FileRange> file_ranges(std::vector<std::pair<uint64_t, uint64_t>> clusters, uint64_t cluster_size) {
  std::sort(clusters.begin(), clusters.end());
  std::vector<FileRange> ranges;
  for (const auto& [first, count] : clusters) {
    const uint64_t offset = first * cluster_size;
    if (!ranges.empty() && ranges.back().offset + ranges.back().length >= offset)
      ranges.back().length = std::max(ranges.back().length, offset + count * cluster_size - ranges.back().offset);
    else
      ranges.push_back({offset, count * cluster_size});
  }
  return ranges;
}

void give_back(BlockDevice& file, std::span<const FileRange> shadow, uint64_t old_file_size) {
  const auto size = file.size();
  if (!size) return;
  for (const FileRange& r : shadow) {
    if (r.offset >= std::min(*size, old_file_size)) continue;
    (void)file.discard(r.offset, std::min(r.length, *size - r.offset));
  }
  if (*size > old_file_size) (void)file.resize(old_file_size);
}

}  // namespace

struct SnapshotTransaction::State {
  State(Image::State& the_image, Refcounts counts)
      : image(the_image),
        format(the_image.header),
        refcounts(std::move(counts)),
        header(the_image.header),
        snapshots(the_image.snapshots),
        l1(the_image.mapping->l1()),
        pass(*the_image.file, format, refcounts) {}

  BlockDevice& file() { return *image.file; }
  uint64_t cluster_size() const { return header.cluster_size(); }
  uint64_t clusters_for(uint64_t bytes) const { return div_round_up(bytes, cluster_size()); }

  Result<void> reserve_present_state();
  Result<std::vector<uint64_t>> read_l1(const Snapshot& snapshot);
  // Writes bytes into free clusters laid end to end; returns the offset.
  Result<uint64_t> write_shadow(std::span<const std::byte> bytes);
  Result<void> release(uint64_t offset, uint64_t bytes);  // one reference less
  Result<void> replace(uint64_t offset, uint64_t bytes);  // the same, for what is written anew elsewhere
  Result<void> drop_tree(std::span<const TableReference> references);
  // Tables that are going to be shared carry no COPIED flags: those that do are written anew without. Returns where
  // they went, 0 for the others.
  Result<std::vector<uint64_t>> write_shared(std::span<const TableReference> references,
                                             std::span<const uint8_t> carries_copied);
  Result<void> refresh_active(std::span<const uint8_t> affected);
  Result<void> drop_bitmaps();
  std::vector<FileRange> freed_ranges() const;
  void replaced_table(uint64_t offset) { replaced.emplace_back(offset >> format.cluster_bits, 1); }
  std::vector<FileRange> shadow_ranges() const;

  Image::State& image;
  EntryFormat format;
  Refcounts refcounts;
  ClusterSet used;  // in the present state: not to be written to
  Header header;    // as it is going to be
  std::vector<Snapshot> snapshots;
  std::vector<uint64_t> l1;  // of the active disk, as it is going to be
  TablePass pass;
  std::vector<std::pair<uint64_t, uint64_t>> written;  // besides what `pass` wrote
  // Metadata that the new state has in another place. It becomes free, but is not given back to the file system: the
  // next commit needs as much again, and finds it here.
  std::vector<std::pair<uint64_t, uint64_t>> replaced;
  uint64_t old_file_size = 0;
  bool table_changed = false;
  bool disk_changed = false;
  bool prepared = false;
};

// All that is in use now must survive until the commit. Refcounts say what that is; where they contradict the very
// structures that we are about to change, nothing is safe.
Result<void> SnapshotTransaction::State::reserve_present_state() {
  TRY(refcounts.load_all());
  used = refcounts.used_clusters();
  const auto check = [&](const char* what, uint64_t offset, uint64_t bytes) -> Result<void> {
    for (uint64_t c = offset / cluster_size(); c < div_round_up(offset + bytes, cluster_size()); ++c)
      if (!used.contains(c))
        return corruption(file().name(), c * cluster_size(),
                          fmt::format("{} lies in a cluster whose refcount is 0", what))
            .with_note(fmt::format("`qemu-img check -r all {}` repairs refcounts; nothing was changed", file().name()));
    return {};
  };
  TRY(check("the header", 0, cluster_size()));
  TRY(check("the refcount table", header.refcount_table_offset, header.refcount_table_clusters * cluster_size()));
  for (const uint64_t block : refcounts.table())
    if (block != 0) TRY(check("a refcount block", block, cluster_size()));
  if (header.l1_size != 0) TRY(check("the L1 table", header.l1_table_offset, uint64_t{header.l1_size} * 8));
  if (image.snapshot_table_bytes != 0)
    TRY(check("the snapshot table", header.snapshots_offset, image.snapshot_table_bytes));
  for (const Snapshot& s : snapshots)
    if (s.l1_size != 0) TRY(check("the L1 table of a snapshot", s.l1_table_offset, uint64_t{s.l1_size} * 8));
  for (const TableReference& t : TRY(table_references(l1, format, file().name())))
    TRY(check("an L2 table", t.host_offset, 1));
  if (header.bitmaps)
    TRY(check("the bitmap directory", header.bitmaps->directory_offset, header.bitmaps->directory_size));
  refcounts.set_reserved(&used);
  old_file_size = TRY(file().size());
  return {};
}

Result<std::vector<uint64_t>> SnapshotTransaction::State::read_l1(const Snapshot& s) {
  std::vector<be64> raw(s.l1_size);
  TRY(read_padded(file(), s.l1_table_offset, std::as_writable_bytes(std::span(raw))));
  return std::vector<uint64_t>(raw.begin(), raw.end());
}

Result<uint64_t> SnapshotTransaction::State::write_shadow(std::span<const std::byte> bytes) {
  if (bytes.empty()) return uint64_t{0};
  const uint64_t count = clusters_for(bytes.size());
  const uint64_t first = TRY(refcounts.allocate(count));
  written.emplace_back(first, count);
  std::vector<std::byte> whole(count * cluster_size());
  std::memcpy(whole.data(), bytes.data(), bytes.size());
  TRY(file().write_at(first * cluster_size(), whole));
  return first * cluster_size();
}

Result<void> SnapshotTransaction::State::release(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return {};
  return refcounts.decrement(offset / cluster_size(), clusters_for(bytes));
}

Result<void> SnapshotTransaction::State::replace(uint64_t offset, uint64_t bytes) {
  replaced.emplace_back(offset / cluster_size(), clusters_for(bytes));
  return release(offset, bytes);
}

// One reference less to the tables and everything below.
Result<void> SnapshotTransaction::State::drop_tree(std::span<const TableReference> references) {
  TRY(pass.drop_references(references));
  for (const TableReference& r : references) TRY(refcounts.decrement(r.host_offset >> format.cluster_bits, 1));
  return {};
}

Result<std::vector<uint64_t>> SnapshotTransaction::State::write_shared(std::span<const TableReference> references,
                                                                       std::span<const uint8_t> carries_copied) {
  std::vector<TableReference> carrying;
  for (size_t i = 0; i < references.size(); ++i)
    if (carries_copied[i] != 0) carrying.push_back(references[i]);
  const std::vector<uint64_t> moved = TRY(pass.write_without_copied(carrying));
  std::vector<uint64_t> result(references.size());
  for (size_t i = 0, k = 0; i < references.size(); ++i)
    if (carries_copied[i] != 0) result[i] = moved[k++];
  return result;
}

// COPIED says "refcount is one": where references went away below `affected` L1 entries, tables and entries of the
// active disk may have become its own again.
Result<void> SnapshotTransaction::State::refresh_active(std::span<const uint8_t> affected) {
  std::vector<TableReference> own;
  for (const TableReference& r : TRY(table_references(l1, format, file().name()))) {
    if (r.l1_index >= affected.size() || affected[r.l1_index] == 0) continue;
    if (refcounts.get_loaded(r.host_offset >> format.cluster_bits) == 1)
      own.push_back(r);
    else
      l1[r.l1_index] = r.host_offset;
  }
  const std::vector<uint64_t> moved = TRY(pass.write_with_fresh_copied(own));
  for (size_t i = 0; i < own.size(); ++i) {
    if (moved[i] != 0) {
      TRY(refcounts.decrement(own[i].host_offset >> format.cluster_bits, 1));
      replaced_table(own[i].host_offset);
    }
    l1[own[i].l1_index] = (moved[i] != 0 ? moved[i] : own[i].host_offset) | kEntryCopied;
  }
  return {};
}

// After a revert, bitmaps would speak of another disk. The sector that commits the revert also takes back the promise
// that they are consistent (autoclear bit), and their clusters are free: no program trusts them, none finds a leak.
Result<void> SnapshotTransaction::State::drop_bitmaps() {
  if (!header.bitmaps) return {};
  for (const auto& [first, count] : TRY(bitmap_clusters(file(), header, *header.bitmaps)))
    TRY(refcounts.decrement(first, count));
  header.bitmaps.reset();
  header.autoclear_features &= ~uint64_t{kAutoclearBitmaps};
  return {};
}

std::vector<FileRange> SnapshotTransaction::State::freed_ranges() const {
  const ClusterSet now = refcounts.used_clusters();
  ClusterSet kept;
  for (const auto& [first, count] : replaced) kept.insert(first, count);
  std::vector<std::pair<uint64_t, uint64_t>> freed;
  used.for_each_word([&](uint64_t w, uint64_t bits) {
    for (uint64_t left = bits & ~now.word(w) & ~kept.word(w); left != 0; left &= left - 1) {
      const uint64_t cluster = w * 64 + static_cast<uint64_t>(__builtin_ctzll(left));
      if (!freed.empty() && freed.back().first + freed.back().second == cluster)
        ++freed.back().second;
      else
        freed.emplace_back(cluster, 1);
    }
  });
  return file_ranges(std::move(freed), cluster_size());
}

std::vector<FileRange> SnapshotTransaction::State::shadow_ranges() const {
  auto all = written;
  all.insert(all.end(), pass.written().begin(), pass.written().end());
  return file_ranges(std::move(all), cluster_size());
}

SnapshotTransaction::SnapshotTransaction(std::unique_ptr<State> state) : state_(std::move(state)) {}
SnapshotTransaction::SnapshotTransaction(SnapshotTransaction&&) noexcept = default;

SnapshotTransaction::~SnapshotTransaction() {
  if (state_ && !state_->prepared) give_back(state_->file(), state_->shadow_ranges(), state_->old_file_size);
}

Result<SnapshotTransaction> SnapshotTransaction::begin(Image& image) {
  Image::State& s = *image.state_;
  const auto unsupported = [&](const char* why) {
    return make_error(ErrorKind::kUnsupported, fmt::format("{}: {}", image.name(), why));
  };
  if (!s.writer)
    return make_error(ErrorKind::kPermission, fmt::format("{}: the image is open for reading only", image.name()));
  if (s.header.has_data_file()) return unsupported("images with an external data file can't hold internal snapshots");
  TRY(image.check_snapshots("no snapshot is created, reverted to or deleted"));
  TRY(image.flush());
  auto state = std::make_unique<State>(s, TRY(Refcounts::open(*s.file, s.header)));
  TRY(state->reserve_present_state());
  return SnapshotTransaction(std::move(state));
}

const std::vector<Snapshot>& SnapshotTransaction::snapshots() const {
  return state_->snapshots;
}

Result<void> SnapshotTransaction::create(const SnapshotSpec& spec) {
  State& s = *state_;
  if (s.snapshots.size() >= kMaxSnapshots)
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{}: holds {} snapshots, the most that qcow2 allows", s.file().name(), kMaxSnapshots))
        .with_note("delete a snapshot first");
  if (spec.name.size() > 0xffff)
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("a snapshot name of {} bytes is too long for qcow2", spec.name.size()));
  const auto references = TRY(table_references(s.l1, s.format, s.file().name()));
  const std::vector<uint8_t> carries_copied = TRY(s.pass.add_references(references));
  const std::vector<uint64_t> moved = TRY(s.write_shared(references, carries_copied));
  for (size_t i = 0; i < references.size(); ++i) {
    const uint64_t old = references[i].host_offset;
    const uint64_t now = moved[i] != 0 ? moved[i] : old;
    // The active disk's reference to the table that moved goes from the old place to the new one, which counts 1
    // already; the snapshot's is one more.
    if (moved[i] != 0) {
      TRY(s.refcounts.decrement(old >> s.format.cluster_bits, 1));
      s.replaced_table(old);
    }
    TRY(s.refcounts.increment(now >> s.format.cluster_bits, 1));
    s.l1[references[i].l1_index] = now;
  }
  Snapshot snapshot;
  snapshot.l1_table_offset = TRY(s.write_shadow(std::as_bytes(std::span<const be64>(big_endian(s.l1)))));
  snapshot.l1_size = static_cast<uint32_t>(s.l1.size());
  snapshot.id = next_snapshot_id(s.snapshots);
  snapshot.name = spec.name;
  snapshot.date_sec = spec.date_sec;
  snapshot.date_nsec = spec.date_nsec;
  snapshot.disk_size = s.header.size;
  snapshot.icount = 0;
  s.snapshots.push_back(std::move(snapshot));
  s.table_changed = true;
  return {};
}

Result<void> SnapshotTransaction::revert(size_t index) {
  State& s = *state_;
  CHECK(index < s.snapshots.size());
  const Snapshot& snapshot = s.snapshots[index];
  if (snapshot.fault) return fault_of(s.file().name(), s.image.header, snapshot);
  const std::vector<uint64_t> target = TRY(s.read_l1(snapshot));
  const uint64_t size = align_down(snapshot.disk_size.value_or(s.header.size), 512);
  const size_t length = std::max<size_t>(target.size(), s.header.l1_entries_for(size));

  std::vector<TableReference> gone;
  std::vector<TableReference> come;
  for (const TableReference& r : TRY(table_references(s.l1, s.format, s.file().name())))
    if (r.l1_index >= target.size() || (target[r.l1_index] & kOffsetMask) != r.host_offset) gone.push_back(r);
  for (const TableReference& r : TRY(table_references(target, s.format, s.file().name())))
    if (r.l1_index >= s.l1.size() || (s.l1[r.l1_index] & kOffsetMask) != r.host_offset) come.push_back(r);
  if (gone.empty() && come.empty() && size == s.header.size && length == s.l1.size()) return {};

  s.disk_changed = true;
  // First what comes, then what goes: no count passes through zero. Tables that both share change nothing at all.
  const std::vector<uint8_t> carries_copied = TRY(s.pass.add_references(come));
  TRY(s.drop_tree(gone));
  // A table of the snapshot with stale COPIED flags gets a clean twin, which is the active disk's alone.
  const std::vector<uint64_t> moved = TRY(s.write_shared(come, carries_copied));
  s.l1.resize(length);
  for (const TableReference& r : gone)
    if (r.l1_index < length) s.l1[r.l1_index] = 0;
  for (size_t i = 0; i < come.size(); ++i) {
    if (moved[i] == 0) TRY(s.refcounts.increment(come[i].host_offset >> s.format.cluster_bits, 1));
    s.l1[come[i].l1_index] = moved[i] != 0 ? moved[i] | kEntryCopied : come[i].host_offset;
  }
  s.header.size = size;
  return s.drop_bitmaps();
}

Result<void> SnapshotTransaction::remove(std::span<const size_t> indexes) {
  State& s = *state_;
  std::vector<uint8_t> affected(s.l1.size());
  std::vector<uint8_t> doomed(s.snapshots.size());
  for (const size_t index : indexes) {
    CHECK(index < s.snapshots.size());
    if (std::exchange(doomed[index], uint8_t{1}) != 0) continue;
    const Snapshot& snapshot = s.snapshots[index];
    const auto references = TRY(table_references(TRY(s.read_l1(snapshot)), s.format, s.file().name()));
    TRY(s.drop_tree(references));
    for (const TableReference& r : references)
      if (r.l1_index < affected.size()) affected[r.l1_index] = 1;
    TRY(s.release(snapshot.l1_table_offset, uint64_t{snapshot.l1_size} * 8));
  }
  size_t at = 0;
  std::erase_if(s.snapshots, [&](const Snapshot&) { return doomed[at++] != 0; });
  s.table_changed = true;
  return s.refresh_active(affected);
}

Result<void> SnapshotTransaction::rename(size_t index, const std::string& new_name) {
  CHECK(index < state_->snapshots.size());
  if (new_name.size() > 0xffff)
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("a snapshot name of {} bytes is too long for qcow2", new_name.size()));
  state_->snapshots[index].name = new_name;
  state_->table_changed = true;
  return {};
}

void SnapshotTransaction::complete_entries() {
  State& s = *state_;
  for (Snapshot& snapshot : s.snapshots) {
    s.table_changed |= !snapshot.disk_size;
    if (!snapshot.disk_size) snapshot.disk_size = s.header.size;
    if (!snapshot.icount) snapshot.icount = ~uint64_t{0};  // not available
  }
}

Result<PreparedCommit> SnapshotTransaction::prepare() {
  State& s = *state_;
  PreparedCommit commit;
  TRY(s.file().read_at(0, commit.before));
  commit.old_file_size = s.old_file_size;
  if (!s.table_changed && !s.disk_changed) {  // a revert to what is there already
    commit.after = commit.before;
    s.prepared = true;
    return commit;
  }
  if (s.table_changed) {
    const std::vector<std::byte> table = serialize_snapshot_table(s.snapshots);
    if (table.size() > kMaxSnapshotTableBytes)
      return make_error(ErrorKind::kUnsupported, fmt::format("{}: the snapshot table would exceed {} bytes",
                                                             s.file().name(), kMaxSnapshotTableBytes));
    TRY(s.replace(s.header.snapshots_offset, s.image.snapshot_table_bytes));
    s.header.snapshots_offset = TRY(s.write_shadow(table));
    s.header.nb_snapshots = static_cast<uint32_t>(s.snapshots.size());
  }
  if (s.l1 != s.image.mapping->l1()) {
    TRY(s.replace(s.header.l1_table_offset, uint64_t{s.header.l1_size} * 8));
    s.header.l1_table_offset = TRY(s.write_shadow(std::as_bytes(std::span<const be64>(big_endian(s.l1)))));
    s.header.l1_size = static_cast<uint32_t>(s.l1.size());
  }
  TRY(s.refcounts.relocate_dirty_blocks());
  s.replaced.insert(s.replaced.end(), s.refcounts.replaced().begin(), s.refcounts.replaced().end());
  s.header.refcount_table_offset = s.refcounts.table_offset();
  s.header.refcount_table_clusters = s.refcounts.table_clusters();
  for (size_t b = 0; b < s.refcounts.block_count(); ++b)
    if (s.refcounts.is_dirty(b)) s.written.emplace_back(s.refcounts.table()[b] / s.cluster_size(), 1);
  s.written.emplace_back(s.header.refcount_table_offset / s.cluster_size(), s.header.refcount_table_clusters);
  TRY(s.refcounts.write_dirty_blocks());
  TRY(s.file().write_at(s.header.refcount_table_offset, s.refcounts.table_bytes()));
  TRY(s.file().flush());  // all of the new state | the sector that makes it the state

  commit.after = commit.before;
  patch_header_sector(s.header, commit.after);
  commit.freed = s.freed_ranges();
  commit.shadow = s.shadow_ranges();
  s.prepared = true;
  return commit;
}

Result<uint64_t> SnapshotTransaction::most_new_bytes(const Image& image) {
  const Image::State& s = *image.state_;
  const uint64_t cluster_size = s.header.cluster_size();
  const auto whole = [&](uint64_t bytes) { return div_round_up(bytes, cluster_size); };
  uint64_t tables = s.header.l1_size;
  for (const Snapshot& snapshot : s.snapshots) tables = std::max<uint64_t>(tables, snapshot.l1_size);
  // Each of create, revert and remove may write every L2 table anew, and an L1 table.
  uint64_t clusters = 3 * (tables + whole(tables * 8));
  constexpr uint64_t kLargestEntry = 0x11000;  // a name of 64 KiB and what stands before it
  clusters += whole(s.snapshot_table_bytes + 2 * kLargestEntry);
  const uint64_t counted = div_round_up(TRY(s.file->size()), cluster_size) + clusters;
  const uint64_t blocks = div_round_up(counted, s.header.refcounts_per_block()) + 2;
  return (clusters + blocks + whole(blocks * 8) + s.header.refcount_table_clusters) * cluster_size;
}

Result<void> SnapshotTransaction::commit_sector(BlockDevice& file, const HeaderSector& before,
                                                const HeaderSector& after) {
  HeaderSector now;
  TRY(file.read_at(0, now));
  if (now != after) {
    if (now != before) {
      Error e = make_error(ErrorKind::kInUse,
                           fmt::format("{}: another program has changed the image's header meanwhile", file.name()));
      e.path = file.name();
      e.offset = 0;
      return e;
    }
    TRY(file.write_at(0, after));
  }
  return file.flush();  // the new state | everything that relies on it, the reuse of what it freed first of all
}

Result<void> SnapshotTransaction::commit(Image& image, const PreparedCommit& prepared) {
  Image::State& s = *image.state_;
  const std::unique_lock io(s.io_lock);
  const std::lock_guard lock(s.metadata_lock);
  const auto make_it_so = [&]() -> Result<void> {
    TRY(commit_sector(*s.file, prepared.before, prepared.after));
    TRY(s.load());
    return s.writer->reload_refcounts();
  };
  s.reader->forget_decompressed();
  auto result = make_it_so();
  // The file may hold the new state while we still know the old one. Reading goes on: nothing of the old state is
  // overwritten. Writing by the old refcounts would destroy the new one.
  if (!result) s.writer->give_up();
  return result;
}

Result<void> SnapshotTransaction::discard_freed(Image& image, const PreparedCommit& prepared) {
  BlockDevice& file = image.file();
  const uint64_t size = TRY(file.size());
  for (const FileRange& r : prepared.freed)
    if (r.offset < size) TRY(file.discard(r.offset, std::min(r.length, size - r.offset)));
  return {};
}

void SnapshotTransaction::abandon(Image& image, const PreparedCommit& prepared) {
  // A commit that failed may have been made all the same; then the shadow is the image.
  HeaderSector now;
  if (!image.file().read_at(0, now) || now != prepared.before) return;
  give_back(image.file(), prepared.shadow, prepared.old_file_size);
}

}  // namespace varve::qcow2
