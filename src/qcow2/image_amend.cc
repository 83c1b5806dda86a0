// What an image is, changed while what it holds stays: the version, and the width of refcounts. Everything new is
// written to free clusters, or says the same as before; the header is written last.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <set>

#include "base/checked.h"
#include "qcow2/corruption.h"
#include "qcow2/header_update.h"
#include "qcow2/image.h"
#include "qcow2/image_state.h"
#include "qcow2/padded_read.h"
#include "qcow2/refcount_array.h"
#include "qcow2/snapshot_transaction.h"
#include "qcow2/table_pass.h"

namespace varve::qcow2 {
namespace {

constexpr size_t kTablesAtOnce = 64;
constexpr size_t kWriteBytes = size_t{1} << 20;

Error refusal(std::string text) {
  return make_error(ErrorKind::kUnsupported, std::move(text));
}

// Where a new refcount structure goes: behind everything, the table first, then the blocks that are not empty.
struct RefcountPlan {
  uint64_t first_cluster = 0;
  uint64_t table_clusters = 1;
  std::vector<bool> blocks;  // which block indexes exist
  uint64_t block_count() const { return static_cast<uint64_t>(std::ranges::count(blocks, true)); }
  uint64_t end() const { return first_cluster + table_clusters + block_count(); }
};

// `blocks`: those that what stays in use needs.
RefcountPlan plan_refcounts(uint64_t first_cluster, uint64_t per_block, uint64_t cluster_size,
                            std::vector<bool> blocks) {
  RefcountPlan plan{.first_cluster = first_cluster, .blocks = std::move(blocks)};
  for (;;) {  // every new cluster is itself counted
    const uint64_t end = plan.end();
    const uint64_t needed = div_round_up(end, per_block);
    if (plan.blocks.size() < needed) plan.blocks.resize(needed);
    for (uint64_t b = first_cluster / per_block; b < needed; ++b) plan.blocks[b] = true;
    plan.table_clusters = div_round_up(plan.blocks.size() * 8, cluster_size);
    if (plan.end() == end) return plan;
  }
}

}  // namespace

Result<void> Image::upgrade() {
  State& s = *state_;
  if (!s.writer) return make_error(ErrorKind::kPermission, name() + ": the image is open for reading only");
  if (s.header.version >= 3) return {};
  if (std::ranges::any_of(s.snapshots, [](const Snapshot& snapshot) { return !snapshot.disk_size; })) {
    auto transaction = TRY(SnapshotTransaction::begin(*this));
    transaction.complete_entries();
    const PreparedCommit prepared = TRY(transaction.prepare());
    TRY(SnapshotTransaction::commit(*this, prepared));
  }
  return update_header([](Header& header) { header.version = 3; });
}

Result<void> Image::change_refcount_bits(uint32_t bits) {
  State& s = *state_;
  if (!s.writer) return make_error(ErrorKind::kPermission, name() + ": the image is open for reading only");
  if (s.header.version < 3) {
    return refusal(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)");
  }
  const std::unique_lock io(s.io_lock);
  const std::lock_guard lock(s.metadata_lock);
  TRY(s.writer->write_back());
  TRY(s.writer->release_freed());
  Result<void> done = s.rewrite_refcounts(bits);
  if (!done) s.writer->give_up();
  return done;
}

Result<void> Image::State::rewrite_refcounts(uint32_t bits) {
  const uint64_t cluster_size = header.cluster_size();
  Refcounts old = TRY(Refcounts::open(*file, header));
  TRY(old.load_all());
  std::vector<std::pair<uint64_t, uint64_t>> old_places = {
      {header.refcount_table_offset / cluster_size, header.refcount_table_clusters}};
  for (const uint64_t block : old.table())
    if (block != 0) old_places.emplace_back(block / cluster_size, 1);
  const uint64_t old_clusters = old.block_count() * header.refcounts_per_block();

  // The old structure is not in use in the new state.
  std::map<uint64_t, uint64_t> less;
  for (const auto& [first, count] : old_places)
    for (uint64_t c = first; c < first + count; ++c) ++less[c];
  const auto new_count = [&](uint64_t cluster) {
    const uint64_t count = old.get_loaded(cluster);
    const auto found = less.find(cluster);
    return found == less.end() ? count : count - std::min(count, found->second);
  };

  Header next = header;
  next.refcount_order = static_cast<uint32_t>(std::countr_zero(bits));
  const uint64_t per_block = next.refcounts_per_block();
  uint64_t end = div_round_up(TRY(file->size()), cluster_size);
  std::vector<bool> blocks;
  const uint64_t most = bits == 64 ? UINT64_MAX : (uint64_t{1} << bits) - 1;
  for (uint64_t c = 0; c < old_clusters; ++c) {
    if (old.get_loaded(c) == 0) continue;
    end = std::max(end, c + 1);
    const uint64_t count = new_count(c);
    if (count == 0) continue;
    if (count > most) {
      return refusal(
          fmt::format("Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a "
                      "refcount of {}",
                      bits, c * cluster_size, count));
    }
    blocks.resize(std::max(blocks.size(), static_cast<size_t>(c / per_block + 1)));
    blocks[c / per_block] = true;
  }
  const RefcountPlan plan = plan_refcounts(end, per_block, cluster_size, std::move(blocks));
  if (plan.table_clusters * cluster_size > std::max(kMaxRefcountTableBytes, cluster_size))
    return refusal(fmt::format("{}: a refcount table for {} bits each would be larger than 8 MiB", file->name(), bits));

  std::vector<be64> table(plan.table_clusters * cluster_size / 8);
  uint64_t place = plan.first_cluster + plan.table_clusters;
  std::vector<std::byte> pending;  // blocks that end at `place`, not written yet
  const auto write = [&]() -> Result<void> {
    TRY(file->write_at(place * cluster_size - pending.size(), pending));
    pending.clear();
    return {};
  };
  for (uint64_t b = 0; b < plan.blocks.size(); ++b) {
    if (!plan.blocks[b]) continue;
    RefcountArray counts(next.refcount_order, cluster_size);
    for (uint64_t i = 0; i < per_block; ++i) {
      const uint64_t c = b * per_block + i;
      const bool is_new = c >= plan.first_cluster && c < plan.end();
      if (is_new || c < old_clusters) counts.set(i, is_new ? 1 : new_count(c));
    }
    table[b] = place * cluster_size;
    pending.insert(pending.end(), counts.bytes().begin(), counts.bytes().end());
    ++place;
    if (pending.size() >= kWriteBytes) TRY(write());
  }
  TRY(write());
  TRY(file->write_at(plan.first_cluster * cluster_size, std::as_bytes(std::span(table))));
  next.refcount_table_offset = plan.first_cluster * cluster_size;
  next.refcount_table_clusters = static_cast<uint32_t>(plan.table_clusters);
  TRY(replace_header(*file, next));  // flushes the new structure first
  TRY(load());
  TRY(writer->reload_refcounts());
  for (const auto& [cluster, references] : less)
    if (new_count(cluster) == 0) (void)file->discard(cluster * cluster_size, cluster_size);
  return {};
}

Result<void> Image::check_downgrade() const {
  const State& s = *state_;
  const Header& h = s.header;
  if (h.refcount_order != 4) return refusal("compat=0.10 requires refcount_bits=16");
  if (h.has_data_file()) return refusal("Cannot downgrade an image with a data file");
  TRY(check_snapshots("the image does not become one of version 2"));
  for (const Snapshot& snapshot : s.snapshots)
    if (snapshot.vm_state_size > UINT32_MAX || snapshot.disk_size.value_or(h.size) != h.size)
      return refusal("Internal snapshots prevent downgrade of image");
  if (const uint64_t features = h.incompatible_features & ~uint64_t{kIncompatCompression}; features != 0)
    return refusal(fmt::format("Cannot downgrade an image with incompatible features {:#x} set", features));
  if (h.bitmaps) {
    return refusal("Persistent bitmaps prevent downgrade of image: version 2 has no place for them")
        .with_note(fmt::format("`qemu-img bitmap --remove {} NAME` removes one", name()));
  }
  return {};
}

// Each table once, where it is met first.
Result<std::vector<Image::State::FoundTable>> Image::State::all_tables() {
  std::vector<FoundTable> tables;
  std::set<uint64_t> known;
  uint64_t entries = 0;
  const EntryFormat format(header);
  const auto add = [&](std::span<const uint64_t> l1, bool active) -> Result<void> {
    for (const TableReference& t : TRY(table_references(l1, format, file->name())))
      if (known.insert(t.host_offset).second)
        tables.push_back({t.host_offset, t.l1_index * header.bytes_per_l2_table(), active, entries + t.l1_index});
    entries += l1.size();
    return {};
  };
  TRY(add(mapping->l1(), true));
  for (const Snapshot& snapshot : snapshots) {
    std::vector<be64> raw(snapshot.l1_size);
    TRY(read_padded(*file, snapshot.l1_table_offset, std::as_writable_bytes(std::span(raw))));
    TRY(add(std::vector<uint64_t>(raw.begin(), raw.end()), false));
  }
  return tables;
}

// Version 2 knows no zero clusters: an entry that is one becomes nothing, or, where a backing file would show, data
// that is zero. Either way the guest sees what it saw, whichever part of it reaches the disk.
Result<bool> Image::State::expand_zeroes(const FoundTable& found, std::span<be64> table) {
  const EntryFormat format(header);
  const uint64_t cluster_size = header.cluster_size();
  Refcounts& refcounts = writer->refcounts();
  const uint64_t sharers = TRY(refcounts.get(found.offset / cluster_size));
  if (sharers == 0) return corruption(file->name(), found.offset, "an L2 table lies in a cluster whose refcount is 0");
  bool changed = false;
  for (size_t i = 0; i < table.size(); ++i) {
    be64& raw = table[i];
    const uint64_t entry = raw;
    const ClusterKind kind = format.kind(entry);
    if (kind != ClusterKind::kZeroPlain && kind != ClusterKind::kZeroAllocated) continue;
    changed = true;
    if (kind == ClusterKind::kZeroAllocated)
      for (uint64_t s = 0; s < sharers; ++s) writer->release((entry & kOffsetMask) / cluster_size, 1);
    if (!header.backing_file && backing == nullptr) {
      raw = 0;
      continue;
    }
    const uint64_t place = TRY(refcounts.allocate(1));
    for (uint64_t s = 1; s < sharers; ++s) TRY(refcounts.increment(place, 1));
    TRY(writer->zero_places(place, found.guest_offset + i * cluster_size, 1));
    raw = place * cluster_size | (found.active && sharers == 1 ? kEntryCopied : 0);
  }
  return changed;
}

Result<void> Image::State::expand_all_zeroes(const std::function<void(uint64_t done, uint64_t total)>& progress) {
  uint64_t total = header.l1_size;
  for (const Snapshot& snapshot : snapshots) total += snapshot.l1_size;
  uint64_t done = 0;
  const auto passed = [&](uint64_t entries) {
    while (done < entries) progress(++done, total);
  };
  struct Changed {
    uint64_t offset = 0;
    std::vector<be64> table;
  };
  std::vector<Changed> changed;
  const auto write = [&]() -> Result<void> {
    TRY(writer->write_back());  // the new places and their refcounts | the tables that name them
    for (const Changed& c : changed) TRY(file->write_at(c.offset, std::as_bytes(std::span(c.table))));
    TRY(file->flush());  // the tables | the reuse of what they named
    changed.clear();
    return writer->release_freed();
  };
  for (const FoundTable& found : TRY(all_tables())) {
    if (progress) passed(found.l1_entry);
    Changed next{found.offset, std::vector<be64>(header.cluster_size() / 8)};
    TRY(read_padded(*file, found.offset, std::as_writable_bytes(std::span(next.table))));
    if (TRY(expand_zeroes(found, next.table))) changed.push_back(std::move(next));
    if (changed.size() >= kTablesAtOnce) TRY(write());
  }
  TRY(write());
  if (progress) passed(total);
  TRY(load());  // tables in memory are the old ones
  return {};
}

Result<void> Image::downgrade(const std::function<void(uint64_t done, uint64_t total)>& progress) {
  State& s = *state_;
  if (!s.writer) return make_error(ErrorKind::kPermission, name() + ": the image is open for reading only");
  if (s.header.version < 3) return {};
  TRY(check_downgrade());
  {
    const std::unique_lock io(s.io_lock);
    const std::lock_guard lock(s.metadata_lock);
    TRY(s.writer->write_back());
    TRY(s.writer->release_freed());
    if ((s.header.incompatible_features & kIncompatCompression) != 0 && TRY(s.has_compressed_clusters())) {
      return refusal("Cannot downgrade an image with zstd compression type and existing compressed clusters");
    }
    if (Result<void> expanded = s.expand_all_zeroes(progress); !expanded) {
      s.writer->give_up();
      return std::move(expanded).error().context("Failed to turn zero into data clusters");
    }
  }
  return update_header([](Header& header) {
    header.version = 2;
    header.incompatible_features = 0;
    header.compatible_features = 0;
    header.autoclear_features = 0;
    header.compression_type = CompressionType::kZlib;
    header.unknown_fields.clear();
  });
}

Result<bool> Image::State::has_compressed_clusters() {
  std::vector<be64> table(header.cluster_size() / 8);
  for (const FoundTable& found : TRY(all_tables())) {
    TRY(read_padded(*file, found.offset, std::as_writable_bytes(std::span(table))));
    if (std::ranges::any_of(table, [](uint64_t entry) { return (entry & kEntryCompressed) != 0; })) return true;
  }
  return false;
}

}  // namespace varve::qcow2
