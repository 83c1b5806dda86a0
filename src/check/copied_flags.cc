#include <fmt/format.h>

#include <cerrno>

#include "base/endian.h"
#include "check/compare.h"
#include "check/metadata_overlap.h"

namespace varve::check {

namespace {

// COPIED says: the refcount is 1, so what is here may be overwritten in place. Nothing where the entry has no say in
// that, or the refcount can't be read.
std::optional<uint64_t> refcount_for(const ImageFile& file, const Layout& layout, const StoredRefcounts& stored,
                                     uint64_t l2_entry) {
  const ClusterKind kind = layout.kind_of(l2_entry);
  if (kind != ClusterKind::kNormal && kind != ClusterKind::kZeroAllocated) return std::nullopt;
  if (layout.has_data_file()) return 1;
  return stored.get(file, (l2_entry & kOffsetMask) >> layout.cluster_bits);
}

bool is_wrong(uint64_t entry, uint64_t refcount) {
  return (refcount == 1) != ((entry & kCopied) != 0);
}

class CopiedCheck {
 public:
  CopiedCheck(Scan& scan, const StoredRefcounts& stored, bool repair, CopiedChanges& changes)
      : s_(scan), stored_(stored), repair_(repair), changes_(changes), table_(scan.layout.cluster_size()) {}

  bool run() {
    const Result<std::vector<uint64_t>> l1 = s_.file.read_words(s_.layout.l1_offset, s_.layout.l1_size);
    if (!l1) return ends("ERROR: I/O error in check_refcounts_l1");
    for (uint64_t i = 0; i < l1->size(); ++i) {
      const uint64_t entry = (*l1)[i];
      const uint64_t l2_offset = entry & kOffsetMask;
      if (l2_offset == 0) continue;
      const std::optional<uint64_t> refcount = stored_.get(s_.file, l2_offset >> s_.layout.cluster_bits);
      if (!refcount) continue;
      if (is_wrong(entry, *refcount)) {
        if (repair_ && overlapped_metadata(s_, s_.layout.l1_offset, uint64_t{s_.layout.l1_size} * 8) != nullptr &&
            !only_l1_overlaps_itself()) {
          return ends("ERROR: Could not write L1 table; metadata overlap check failed: Input/output error");
        }
        found(repair_,
              fmt::format("OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={}", i, entry, *refcount));
        note(*refcount == 1, repair_);
      }
      if (!check_l2(l2_offset)) return false;
    }
    return true;
  }

 private:
  bool ends(const std::string& text) {
    s_.report.line(text);
    ++s_.tally.check_errors;
    s_.tally.error = EIO;
    return false;
  }

  bool only_l1_overlaps_itself() const {
    const std::string_view other = overlapped_metadata(s_, s_.layout.l1_offset, uint64_t{s_.layout.l1_size} * 8);
    return other == "active L1 table" && s_.layout.l1_offset >= s_.layout.cluster_size();
  }

  void found(bool repairs, const std::string& what) {
    s_.report.line((repairs ? "Repairing " : "ERROR ") + what);
    ++(repairs ? s_.tally.corruptions_fixed : s_.tally.corruptions);
  }
  void note(bool sets, bool repairs) {
    if (!repairs) return;
    (sets ? changes_.sets : changes_.clears) = true;
  }

  bool check_l2(uint64_t l2_offset) {
    if (!s_.file.read(l2_offset, table_)) {
      return ends("ERROR: Could not read L2 table: Input/output error");
    }
    // A table at such a place shares its clusters with something else: what a repair wrote there could be guest data.
    const bool repairs = repair_ && s_.layout.is_aligned(l2_offset);
    const uint64_t entry_bytes = s_.layout.l2_entry_bytes();
    bool is_dirty = false;
    for (uint64_t i = 0; i < s_.layout.l2_entries(); ++i) {
      const auto entry = load_be<uint64_t>(&table_[i * entry_bytes]);
      const std::optional<uint64_t> refcount = refcount_for(s_.file, s_.layout, stored_, entry);
      if (!refcount || !is_wrong(entry, *refcount)) continue;
      if (!s_.zeroed_offsets.empty() && s_.zeroed_offsets.contains(l2_offset + i * entry_bytes)) continue;
      found(repairs, fmt::format("OFLAG_COPIED data cluster: l2_entry={:x} refcount={}", entry, *refcount));
      note(*refcount == 1, repairs);
      is_dirty |= repairs;
    }
    if (is_dirty && overlapped_metadata(s_, l2_offset, s_.layout.cluster_size()) != nullptr) {
      return ends("ERROR: Could not write L2 table; metadata overlap check failed: Input/output error");
    }
    return true;
  }

  Scan& s_;
  const StoredRefcounts& stored_;
  bool repair_;
  CopiedChanges& changes_;
  std::vector<std::byte> table_;
};

}  // namespace

bool check_copied_flags(Scan& scan, const StoredRefcounts& stored, bool repair, CopiedChanges& changes) {
  return CopiedCheck(scan, stored, repair, changes).run();
}

Result<void> write_copied_flags(const ImageFile& file, const Layout& layout, const StoredRefcounts& stored,
                                CopiedWrite which) {
  const auto changed = [&](uint64_t entry, uint64_t refcount) {
    if (!is_wrong(entry, refcount) || (refcount == 1) != (which == CopiedWrite::kSet)) return entry;
    return entry ^ kCopied;
  };
  std::vector<uint64_t> l1 = TRY(file.read_words(layout.l1_offset, layout.l1_size));
  std::vector<std::byte> table(layout.cluster_size());
  bool l1_is_dirty = false;
  for (uint64_t& entry : l1) {
    const uint64_t l2_offset = entry & kOffsetMask;
    if (l2_offset == 0) continue;
    const std::optional<uint64_t> refcount = stored.get(file, l2_offset >> layout.cluster_bits);
    if (!refcount) continue;
    const uint64_t new_entry = changed(entry, *refcount);
    l1_is_dirty |= new_entry != entry;
    entry = new_entry;
    if (!layout.is_aligned(l2_offset)) continue;
    TRY(file.read(l2_offset, table));
    bool is_dirty = false;
    for (size_t at = 0; at < table.size(); at += layout.l2_entry_bytes()) {
      const auto l2_entry = load_be<uint64_t>(&table[at]);
      const std::optional<uint64_t> data_refcount = refcount_for(file, layout, stored, l2_entry);
      if (!data_refcount) continue;
      const uint64_t new_l2_entry = changed(l2_entry, *data_refcount);
      if (new_l2_entry == l2_entry) continue;
      store_be(&table[at], new_l2_entry);
      is_dirty = true;
    }
    if (is_dirty) TRY(file.device().write_at(l2_offset, table));
  }
  if (!l1_is_dirty) return {};
  for (uint64_t& entry : l1) store_be(&entry, entry);
  return file.device().write_at(layout.l1_offset, std::as_bytes(std::span(l1)));
}

}  // namespace varve::check
