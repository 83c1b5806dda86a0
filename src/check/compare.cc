#include "check/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::check {

namespace {

// A block far behind the end would let file and memory grow without bounds: then the structure is rebuilt instead.
constexpr uint64_t kMaxGrownCountBytes = uint64_t{256} << 20;

// Whether a file can be that large only its file system can tell, so it is tried. What is there then is a hole, and it
// goes again: nothing is changed before the whole repair is planned. 0, or why not.
int try_size(BlockDevice& device, uint64_t size) {
  const Result<uint64_t> now = device.size();
  if (!now) return EIO;
  if (size <= *now) return 0;
  const Result<void> grown = device.resize(size);
  if (!grown) return grown.error().sys_errno != 0 ? grown.error().sys_errno : EINVAL;
  return device.resize(*now) ? 0 : EIO;
}

// 0, or why the file can't be made to hold this block.
int plan_growth(Scan& scan, StoredRefcounts& stored, uint64_t offset) {
  const uint64_t cluster_size = scan.layout.cluster_size();
  if (offset > static_cast<uint64_t>(INT64_MAX) - cluster_size) return EINVAL;
  const uint64_t clusters = (offset + cluster_size) >> scan.layout.cluster_bits;
  if (clusters > INT32_MAX || (clusters << scan.layout.refcount_order) / 8 > kMaxGrownCountBytes) return EFBIG;
  if (const int error = try_size(scan.file.device(), offset + cluster_size); error != 0) return error;
  scan.file.will_reach(offset + cluster_size);
  scan.counts.grow(clusters);
  return stored.grow(scan.file, clusters) ? 0 : EIO;
}

void report_outside(Scan& scan, StoredRefcounts& stored, uint64_t index, uint64_t offset, bool& rebuild) {
  const bool repairs = scan.repair == Repair::kAll;
  scan.report.line(fmt::format("{} refcount block {} is outside image", repairs ? "Repairing" : "ERROR", index));
  if (!repairs) {
    ++scan.tally.corruptions;
    return;
  }
  if (const int error = plan_growth(scan, stored, offset); error != 0) {
    ++scan.tally.corruptions;
    rebuild = true;
    if (error == EFBIG) scan.report.error("Could not resize file: File too large");
    scan.report.line(fmt::format("ERROR could not resize image: {}", std::strerror(error)));
    return;
  }
  ++scan.tally.corruptions_fixed;
  count_range(scan, offset, scan.layout.cluster_size());
}

}  // namespace

void check_blocks(Scan& scan, StoredRefcounts& stored, bool& rebuild) {
  const auto broken = [&](const std::string& text) {
    scan.report.line(text);
    ++scan.tally.corruptions;
    rebuild = true;
  };
  for (uint64_t i = 0; i < scan.blocks.size(); ++i) {
    const uint64_t entry = scan.blocks[i];
    const uint64_t offset = entry & kBlockOffsetMask;
    const uint64_t cluster = offset >> scan.layout.cluster_bits;
    if ((entry & kBlockReserved) != 0) {
      broken(fmt::format("ERROR refcount table entry {} has reserved bits set", i));
    } else if (!scan.layout.is_aligned(offset)) {
      broken(fmt::format("ERROR refcount block {} is not cluster aligned; refcount table entry corrupted", i));
    } else if (cluster >= scan.counts.clusters()) {
      report_outside(scan, stored, i, offset, rebuild);
    } else if (offset != 0) {
      count_range(scan, offset, scan.layout.cluster_size());
      if (const uint64_t count = scan.counts.get(cluster); count != 1) {
        broken(fmt::format("ERROR refcount block {} refcount={}", i, count));
      }
    }
  }
}

namespace {

class Comparer {
 public:
  Comparer(Scan& scan, StoredRefcounts& stored, Repair repair) : s_(scan), stored_(stored), repair_(repair) {}

  Comparison run() {
    // What differs is rare: whole pieces are compared first.
    constexpr uint64_t kPieceClusters = 1 << 15;
    (void)stored_.grow(s_.file, s_.counts.clusters());
    const uint64_t clusters = s_.counts.clusters();
    for (uint64_t first = 0; first < clusters; first += kPieceClusters) {
      const uint64_t end = std::min(clusters, first + kPieceClusters);
      if (!stored_.all_readable() || end - first < kPieceClusters || !is_same(first, end)) {
        for (uint64_t i = first; i < end; ++i) compare(i);
      } else {
        note_highest(first, end);
      }
    }
    return result_;
  }

 private:
  bool is_same(uint64_t first, uint64_t end) const {
    const uint64_t from = (first << s_.counts.order()) / 8;
    const uint64_t to = (end << s_.counts.order()) / 8;
    return std::memcmp(&s_.counts.bytes()[from], &stored_.counts().bytes()[from], to - from) == 0;
  }

  void note_highest(uint64_t first, uint64_t end) {
    if (const uint64_t last = s_.counts.last_counted(first, end); last != end) result_.highest_cluster = last;
  }

  void report_unreadable(uint64_t cluster) {
    if (stored_.is_misaligned(cluster) && !signalled_) {
      const bool writable = s_.repair != Repair::kNone;
      const uint64_t block = cluster / s_.layout.refcounts_per_block();
      s_.report.line(fmt::format(
          "qcow2: {}: Refblock offset {:#x} unaligned (reftable index: {}); further {}corruption "
          "events will be suppressed",
          writable ? "Marking image as corrupt" : "Image is corrupt", stored_.table()[block] & kBlockOffsetMask,
          block == 0 ? "0" : fmt::format("{:#x}", block), writable ? "" : "non-fatal "));
      signalled_ = true;
    }
    s_.report.line(fmt::format("Can't get refcount for cluster {}: Input/output error", cluster));
    ++s_.tally.check_errors;
  }

  void compare(uint64_t cluster) {
    const uint64_t reference = s_.counts.get(cluster);
    if (!stored_.is_readable(cluster)) return report_unreadable(cluster);
    const uint64_t refcount = stored_.counts().get(cluster);
    if (refcount != 0 || reference != 0) result_.highest_cluster = cluster;
    if (refcount == reference) return;
    bool fixes = false;
    if (refcount == 0) {
      result_.rebuild = true;
    } else {
      fixes = refcount > reference ? repair_ != Repair::kNone : repair_ == Repair::kAll;
    }
    const char* what = fixes ? "Repairing" : refcount < reference ? "ERROR" : "Leaked";
    s_.report.line(fmt::format("{} cluster {} refcount={} reference={}", what, cluster, refcount, reference));
    if (fixes) {
      stored_.counts().set(cluster, reference);
      ++(refcount > reference ? s_.tally.leaks_fixed : s_.tally.corruptions_fixed);
    } else {
      ++(refcount < reference ? s_.tally.corruptions : s_.tally.leaks);
    }
  }

  Scan& s_;
  StoredRefcounts& stored_;
  Repair repair_;
  bool signalled_ = false;
  Comparison result_;
};

}  // namespace

Comparison compare_refcounts(Scan& scan, StoredRefcounts& stored, Repair repair) {
  return Comparer(scan, stored, repair).run();
}

}  // namespace varve::check
