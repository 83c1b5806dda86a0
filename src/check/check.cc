#include "check/check.h"

#include <fmt/format.h>

#include <cerrno>
#include <new>
#include <optional>
#include <string_view>

#include "base/checked.h"
#include "base/endian.h"
#include "check/bitmaps.h"
#include "check/compare.h"
#include "check/rebuild.h"
#include "check/references.h"
#include "check/repair_plan.h"
#include "check/repair_summary.h"

namespace varve::check {

namespace {

class Check {
 public:
  Check(BlockDevice& device, const CheckOptions& options, const Report& report)
      : file_(device), options_(options), report_(report) {}

  Result<CheckResult> run() {
    TRY(file_.measure());
    layout_ = TRY(read_layout(file_));
    original_ = layout_;
    const uint64_t clusters = div_round_up(file_.size(), layout_.cluster_size());
    CheckResult result;
    Tally snapshot_tally;
    Result<SnapshotEntries> snapshots = read_snapshot_entries(file_, layout_, options_.repair, report_, snapshot_tally);
    if (!snapshots) {
      result.tally = snapshot_tally;
      return result;
    }
    snapshots_ = std::move(*snapshots);
    if (clusters > INT32_MAX) {
      result.tally = {.check_errors = 1, .error = EFBIG};
      return result;
    }
    stored_.emplace(TRY(StoredRefcounts::load(file_, layout_, clusters)));
    counts_.emplace(layout_.refcount_order, layout_.cluster_size(), clusters);
    const bool complete = check_refcounts();
    result.tally = tally_;
    result.allocation = allocation_;
    if (!complete) return result;
    TRY(repair_snapshots(snapshot_tally));
    result.tally.add(snapshot_tally);
    if (options_.repair != Repair::kNone) {
      plan_.clears_bits = result.tally.check_errors == 0 && result.tally.corruptions == 0;
      plan_.zeroed = std::move(zeroed_);
      if (file_grows_) plan_.file_size = file_.size();
      if (options_.planned) options_.planned(TRY(summarize(plan_, file_, original_, *stored_)));
      TRY(carry_out(plan_, file_, original_, *stored_));
    }
    return result;
  }

 private:
  Scan scan(Repair repair) {
    return {.file = file_,
            .layout = layout_,
            .snapshots = snapshots_,
            .report = report_,
            .repair = repair,
            .tally = tally_,
            .allocation = allocation_,
            .counts = *counts_,
            .blocks = stored_->table(),
            .zeroed = zeroed_,
            .zeroed_offsets = zeroed_offsets_,
            .progress = options_.progress};
  }

  // Counts all references. False: the check ends here.
  bool count(Repair repair, bool& rebuild) {
    Scan s = scan(repair);
    allocation_ = {};
    allocation_.total = div_round_up(layout_.virtual_size, layout_.cluster_size());
    const Result<FastCount> fast = count_tables_fast(s, *stored_);
    copied_ = fast && fast->is_sound ? fast->copied : CopiedFlags::kUnknown;
    if (!fast || !fast->is_sound) {
      counts_->clear();
      allocation_ = {.total = allocation_.total};
      if (!count_tables_exactly(s)) return false;
    }
    if (!count_other_metadata(s)) return false;
    const uint64_t size = file_.size();
    check_blocks(s, *stored_, rebuild);
    file_grows_ |= file_.size() != size;
    return true;
  }

  bool check_refcounts() {
    const Repair repair = options_.repair;
    bool rebuild = false;
    if (!count(repair, rebuild)) return false;
    const Tally before = tally_;
    Scan s = scan(repair);
    Comparison comparison = compare_refcounts(s, *stored_, Repair::kNone);
    rebuild |= comparison.rebuild;
    if (rebuild && repair == Repair::kAll) {
      if (!rebuild_structure(comparison)) return false;
    } else if (repair != Repair::kNone && rebuild) {
      report_.line("ERROR need to rebuild refcount structures");
      ++tally_.check_errors;
      tally_.error = EIO;
      return false;
    } else if (repair != Repair::kNone && (tally_.leaks != 0 || tally_.corruptions != 0)) {
      const Tally found = tally_;
      tally_ = before;
      comparison = compare_refcounts(s, *stored_, repair);
      if (tally_.leaks != found.leaks || tally_.corruptions != found.corruptions) {
        plan_.changes_refcounts = true;
        copied_ = CopiedFlags::kUnknown;
      }
    }
    allocation_.image_end = (comparison.highest_cluster + 1) * layout_.cluster_size();
    if (copied_ == CopiedFlags::kRight) return true;
    Scan last = scan(repair);
    const bool repairs_copied = repair == Repair::kAll || (repair == Repair::kLeaks && tally_.check_errors == 0 &&
                                                           tally_.corruptions == 0 && tally_.leaks == 0);
    return check_copied_flags(last, *stored_, repairs_copied, plan_.copied);
  }

  // Plans a new refcount structure, and what is a leak once the old one is gone.
  bool rebuild_structure(Comparison& comparison) {
    const Tally found = tally_;
    report_.line("Rebuilding refcount structure");
    std::optional<NewStructure> structure = place_structure(*counts_, layout_);
    if (!structure) {
      report_.error("ERROR allocating reftable: File too large");
      ++tally_.check_errors;
      tally_.error = EFBIG;
      return false;
    }
    adopt(*structure);
    counts_.emplace(layout_.refcount_order, layout_.cluster_size(), stored_->counts().clusters());
    plan_.structure = std::move(structure);
    tally_.corruptions = 0;
    tally_.leaks = 0;
    bool rebuild = false;
    if (!count(Repair::kNone, rebuild)) return false;
    // What was the old structure's is free now.
    Tally leaks;
    std::swap(leaks, tally_);
    Scan s = scan(options_.repair);
    comparison = compare_refcounts(s, *stored_, Repair::kLeaks);
    std::swap(leaks, tally_);
    if (rebuild || comparison.rebuild) report_.line("ERROR rebuilt refcount structure is still broken");
    if (tally_.corruptions < found.corruptions) tally_.corruptions_fixed += found.corruptions - tally_.corruptions;
    if (tally_.leaks < found.leaks) tally_.leaks_fixed += found.leaks - tally_.leaks;
    tally_.leaks += leaks.leaks;
    copied_ = CopiedFlags::kUnknown;
    return true;
  }

  // From here on the image is looked at as if the structure was there.
  void adopt(const NewStructure& structure) {
    layout_.refcount_table_offset = structure.table_offset;
    layout_.refcount_table_clusters = structure.table_clusters;
    file_.will_reach(structure.table_offset + structure.blocks.size() * 8);
    for (const uint64_t block : structure.blocks) {
      if (block != 0) file_.will_reach(block + layout_.cluster_size());
    }
    std::vector<std::byte> pointer(12);
    store_be<uint64_t>(pointer.data(), structure.table_offset);
    store_be<uint32_t>(&pointer[8], structure.table_clusters);
    file_.will_hold(kFieldRefcountTable, std::move(pointer));
    stored_->replace(structure.blocks, std::move(*counts_));
  }

  // Plans the snapshot table that was read, in clusters of its own.
  Result<void> repair_snapshots(Tally& tally) {
    if (options_.repair != Repair::kAll) return {};
    const auto count = static_cast<uint32_t>(snapshots_.entries.size());
    if (snapshots_.needs_fewer) plan_.nb_snapshots = count;
    if (!snapshots_.needs_new_table) return {};
    plan_.snapshot_table = serialize(snapshots_.entries);
    if (plan_.snapshot_table.size() > kMaxSnapshotTableBytes) {
      report_.line("ERROR failed to update snapshot table: File too large");
      ++tally.check_errors;
      return {};
    }
    const uint64_t offset = TRY(allocate_snapshot_table(plan_.snapshot_table.size()));
    plan_.nb_snapshots = count;
    plan_.snapshots_offset = offset;
    release(layout_.snapshots_offset, snapshots_.table_bytes);
    tally.corruptions_fixed += tally.corruptions;
    tally.corruptions = 0;
    return {};
  }

  Result<uint64_t> allocate_snapshot_table(uint64_t bytes) {
    const uint64_t clusters = div_round_up(bytes, layout_.cluster_size());
    const uint64_t per_block = layout_.refcounts_per_block();
    // Up to the end of the last block, whether the file reaches so far or not.
    RefcountArray& counts = stored_->counts();
    TRY(stored_->grow(file_, align_up(counts.clusters(), per_block)));
    uint64_t run = 0;
    for (uint64_t i = 0; i < counts.clusters(); ++i) {
      const uint64_t block = i / per_block;
      const bool usable = block < stored_->table().size() && (stored_->table()[block] & kBlockOffsetMask) != 0 &&
                          stored_->is_readable(i);
      run = usable && counts.get(i) == 0 ? run + 1 : 0;
      if (run < clusters) continue;
      for (uint64_t c = i + 1 - clusters; c <= i; ++c) counts.set(c, 1);
      if (!plan_.structure) plan_.changes_refcounts = true;
      return (i + 1 - clusters) << layout_.cluster_bits;
    }
    return allocate_with_new_structure(clusters);
  }

  // No block has room: a new structure that has.
  Result<uint64_t> allocate_with_new_structure(uint64_t clusters) {
    const std::vector<uint64_t> old_blocks = stored_->table();
    RefcountArray counts = std::move(stored_->counts());
    const uint64_t first = allocate_clusters(counts, clusters, 0);
    std::optional<NewStructure> structure = place_structure(counts, layout_);
    if (!structure) return system_error(EFBIG, "no room for a refcount table");
    stored_->replace(structure->blocks, std::move(counts));
    plan_.structure = std::move(structure);
    // The old structure is free once the header points to the new one; until then nothing was put in its place.
    release(layout_.refcount_table_offset, layout_.refcount_table_entries() * 8);
    for (const uint64_t block : old_blocks) {
      if ((block & kBlockOffsetMask) != 0) release(block & kBlockOffsetMask, layout_.cluster_size());
    }
    return first << layout_.cluster_bits;
  }

  // All of it or nothing: what was not counted as in use can't be given back, and QEMU says so.
  void release(uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return;
    RefcountArray& counts = stored_->counts();
    const uint64_t first = offset >> layout_.cluster_bits;
    const uint64_t end = div_round_up(offset + bytes, layout_.cluster_size());
    for (uint64_t i = first; i < end; ++i) {
      if (counts.get(i) == 0) return report_.line("qcow2_free_clusters failed: Invalid argument");
    }
    for (uint64_t i = first; i < end; ++i) counts.set(i, counts.get(i) - 1);
    if (!plan_.structure) plan_.changes_refcounts = true;
  }

  ImageFile file_;
  const CheckOptions& options_;
  const Report& report_;
  Layout layout_;
  Layout original_;
  SnapshotEntries snapshots_;
  std::optional<StoredRefcounts> stored_;
  std::optional<RefcountArray> counts_;
  Tally tally_;
  Allocation allocation_;
  CopiedFlags copied_ = CopiedFlags::kUnknown;
  std::vector<ZeroedEntry> zeroed_;
  std::unordered_set<uint64_t> zeroed_offsets_;
  bool file_grows_ = false;
  RepairPlan plan_;
};

}  // namespace

Result<CheckResult> check_image(BlockDevice& device, const CheckOptions& options, const Report& report) {
  try {
    return Check(device, options, report).run();
  } catch (const std::bad_alloc&) {
    return system_error(ENOMEM, fmt::format("cannot check '{}'", device.name()));
  }
}

Result<Layout> open_layout(BlockDevice& device) {
  ImageFile file(device);
  TRY(file.measure());
  Layout layout = TRY(read_layout(file));
  TRY(validate_bitmaps(file, layout));
  return layout;
}

Result<Layout> open_layout_for_use(BlockDevice& device) {
  ImageFile file(device);
  TRY(file.measure());
  Layout layout = TRY(read_layout(file));
  const auto bad = [](const char* why) { return make_error(ErrorKind::kCorrupt, why); };
  if (layout.refcount_table_clusters == 0) return bad("Image does not contain a reference count table");
  if (layout.nb_snapshots > kMaxSnapshots) return bad("Snapshot table too large");
  if (layout.snapshots_offset > static_cast<uint64_t>(INT64_MAX) - layout.nb_snapshots * kSnapshotHeaderBytes ||
      !layout.is_aligned(layout.snapshots_offset)) {
    return bad("Snapshot table offset invalid");
  }
  constexpr std::string_view kOfACheck = "ERROR failed to read the snapshot table: ";
  std::string reason;
  const auto add = [&](std::string_view text) {
    if (text.starts_with(kOfACheck)) text.remove_prefix(kOfACheck.size());
    reason += (reason.empty() ? "" : "\n") + std::string(text);
  };
  Tally tally;
  if (!read_snapshot_entries(file, layout, Repair::kNone, {.line = add, .error = add}, tally)) {
    return make_error(ErrorKind::kCorrupt, reason);
  }
  TRY(validate_bitmaps(file, layout));
  return layout;
}

}  // namespace varve::check
