#include "qcow2/image_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/aligned_vector.h"
#include "base/checked.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

constexpr size_t kMaxDirtyBytes = size_t{32} << 20;

// First clusters and counts in the order of the file, neighbours as one. What is freed twice stays there twice.
std::vector<std::pair<uint64_t, uint64_t>> merged(std::vector<std::pair<uint64_t, uint64_t>> ranges) {
  std::ranges::sort(ranges);
  std::vector<std::pair<uint64_t, uint64_t>> result;
  for (const auto& range : ranges) {
    if (!result.empty() && result.back().first + result.back().second == range.first)
      result.back().second += range.second;
    else
      result.push_back(range);
  }
  return result;
}

}  // namespace

Result<std::unique_ptr<ImageWriter>> ImageWriter::open(BlockDevice& file, const GuestData& data, Header& header,
                                                       Mapping& mapping, GuestReader& reader,
                                                       const std::shared_ptr<BlockDevice>& backing) {
  Refcounts refcounts = TRY(Refcounts::open(file, header));
  return std::unique_ptr<ImageWriter>(
      new ImageWriter(file, data, header, mapping, reader, backing, std::move(refcounts)));
}

Result<void> ImageWriter::reload_refcounts() {
  CHECK(dirty_tables_.empty() && dirty_l1_.empty() && freed_.empty() && dropped_data_.empty());
  refcounts_ = TRY(Refcounts::open(file_, header_));
  metadata_.reset();
  failed_ = false;
  return {};
}

Result<void> ImageWriter::check_usable() const {
  if (!failed_) return {};
  return make_error(ErrorKind::kIo, fmt::format("{}: an earlier write failed; the image takes no more", file_.name()));
}

Result<ImageWriter::InPlace> ImageWriter::find_in_place(uint64_t offset, uint64_t length) {
  TRY(check_usable());
  const uint64_t l1 = mapping_.l1_index(offset);
  if ((mapping_.l1()[l1] & kEntryCopied) == 0) return InPlace{};
  const EntryFormat& f = mapping_.format();
  L2Table* table = TRY(mapping_.table(l1));
  if (table == nullptr) return InPlace{};
  // The stretch of entries that are ours alone, then what lookup() says of it: data, contiguous, allocated.
  uint64_t index = mapping_.l2_index(offset);
  const uint64_t in_cluster = offset & (cluster_size() - 1);
  uint64_t ours = 0;
  for (; index < mapping_.entries_per_table() && ours < in_cluster + length; ++index, ours += cluster_size()) {
    const uint64_t entry = table->entry(f, index);
    if ((entry & kEntryCopied) == 0 || f.kind(entry) != ClusterKind::kData) break;
  }
  if (ours <= in_cluster) return InPlace{};
  const MappedRun run = TRY(mapping_.lookup(offset, std::min(length, ours - in_cluster)));
  if (run.kind != MappedRun::Kind::kData) return InPlace{};
  if (!header_.has_data_file()) {
    const uint64_t first = run.host_offset / cluster_size();
    TRY(check_no_metadata(first, div_round_up(run.host_offset + run.length, cluster_size()) - first));
  }
  return InPlace{run.host_offset, run.length};
}

// The L2 table below an L1 entry, ours alone: made where there is none, copied where it is shared.
Result<L2Table*> ImageWriter::writable_table(uint64_t l1_index) {
  L2Table* table = TRY(mapping_.table(l1_index));
  if (table != nullptr && (mapping_.l1()[l1_index] & kEntryCopied) != 0) return table;
  L2Table fresh;
  if (table != nullptr) {
    fresh.words = table->words;
    freed_.emplace_back(table->host_offset / cluster_size(), 1);
    if (metadata_) metadata_->erase(table->host_offset / cluster_size(), 1);
  } else {
    fresh.words.resize(cluster_size() / 8);
  }
  const uint64_t place = TRY(refcounts_.allocate(1));
  TRY(check_no_metadata(place, 1));
  metadata_->insert(place, 1);
  fresh.host_offset = place * cluster_size();
  fresh.dirty = true;
  mapping_.l1()[l1_index] = fresh.host_offset | kEntryCopied;
  dirty_tables_.insert(l1_index);
  dirty_l1_.insert(l1_index);
  return mapping_.put(l1_index, std::move(fresh));
}

void ImageWriter::set_entry(L2Table& table, uint64_t index, uint64_t entry, uint64_t bitmap) {
  const uint32_t words = mapping_.format().entry_words();
  table.words[index * words] = entry;
  if (words == 2) table.words[index * 2 + 1] = bitmap;
  table.dirty = true;
}

// The reference that `entry`, of the guest's cluster at `guest_cluster`, held is gone.
Result<void> ImageWriter::drop_cluster(uint64_t guest_cluster, uint64_t entry) {
  const EntryFormat& f = mapping_.format();
  switch (f.kind(entry)) {
    case ClusterKind::kUnallocated:
    case ClusterKind::kZeroPlain:
      return {};
    case ClusterKind::kCompressed: {
      if (f.data_file)
        return corruption(file_.name(), entry, "compressed cluster in an image with an external data file");
      const CompressedRange range = f.compressed_range(entry);
      const uint64_t first = range.offset / cluster_size();
      const uint64_t last = (range.offset + range.length - 1) / cluster_size();
      TRY(check_no_metadata(first, last - first + 1));
      freed_.emplace_back(first, last - first + 1);
      return {};
    }
    case ClusterKind::kZeroAllocated:
    case ClusterKind::kData: {
      const uint64_t cluster = (entry & kOffsetMask) / cluster_size();
      if (f.data_file) {
        if (cluster * cluster_size() != guest_cluster)
          return corruption(file_.name(), entry & kOffsetMask,
                            "an entry names another place of the external data file than its own");
        dropped_data_.insert(cluster, 1);
        return {};
      }
      TRY(check_no_metadata(cluster, 1));
      if (!freed_.empty() && freed_.back().first + freed_.back().second == cluster) {
        ++freed_.back().second;
      } else {
        freed_.emplace_back(cluster, 1);
      }
      return {};
    }
  }
  return {};
}

Result<uint64_t> ImageWriter::zero_by_table(uint64_t offset, uint64_t length, ZeroKind kind) {
  TRY(check_usable());
  const bool to_end = offset + length >= header_.size;  // the last cluster may be cut by the disk's end
  const uint64_t end = to_end ? align_up(header_.size, cluster_size()) : offset + length;
  uint64_t done = offset;
  while (done < end) {
    const uint64_t in_cluster = done & (cluster_size() - 1);
    const uint64_t piece = std::min(cluster_size() - in_cluster, end - done);
    bool handled = false;
    if (piece == cluster_size()) {
      handled = TRY(zero_cluster(done, kind));
    } else if (mapping_.format().extended && in_cluster % header_.subcluster_size() == 0 &&
               piece >= header_.subcluster_size()) {
      const uint64_t first = in_cluster / header_.subcluster_size();
      const uint64_t whole = piece / header_.subcluster_size();
      handled = TRY(zero_subclusters(done - in_cluster, first, first + whole, kind));
      if (handled) {
        done += whole * header_.subcluster_size();
        continue;
      }
    }
    if (!handled) break;
    done += piece;
  }
  return std::min(done, offset + length) - offset;
}

Result<bool> ImageWriter::zero_cluster(uint64_t guest_cluster, ZeroKind kind) {
  if (mapping_.format().extended) return zero_subclusters(guest_cluster, 0, 32, kind);
  const EntryFormat& f = mapping_.format();
  const bool has_backing = header_.backing_file.has_value() || backing_ != nullptr;
  const uint64_t l1 = mapping_.l1_index(guest_cluster);
  const uint64_t index = mapping_.l2_index(guest_cluster);
  L2Table* table = TRY(mapping_.table(l1));
  const uint64_t entry = table != nullptr ? table->entry(f, index) : 0;
  const ClusterKind old = f.kind(entry);
  // Zeroes that somebody wrote stay zeroes whatever backing file comes later; a discard promises nothing.
  if (old == ClusterKind::kUnallocated && !has_backing && (f.version < 3 || kind == ZeroKind::kDiscard)) return true;
  if (old == ClusterKind::kZeroPlain || (old == ClusterKind::kZeroAllocated && kind == ZeroKind::kKeepAllocated))
    return true;
  // Version 2 knows no zero clusters: with a backing file behind, "unallocated" would let its data through.
  if (f.version < 3 && has_backing) return false;
  table = TRY(writable_table(l1));
  dirty_tables_.insert(l1);
  const bool keep =
      kind == ZeroKind::kKeepAllocated && f.version >= 3 && old == ClusterKind::kData && (entry & kEntryCopied) != 0;
  if (keep) {
    set_entry(*table, index, entry | kEntryZero, 0);
    return true;
  }
  TRY(drop_cluster(guest_cluster, entry));
  set_entry(*table, index, f.version >= 3 ? kEntryZero : 0, 0);
  return true;
}

Result<bool> ImageWriter::zero_subclusters(uint64_t guest_cluster, uint64_t first, uint64_t last, ZeroKind kind) {
  const EntryFormat& f = mapping_.format();
  const uint64_t l1 = mapping_.l1_index(guest_cluster);
  const uint64_t index = mapping_.l2_index(guest_cluster);
  L2Table* table = TRY(mapping_.table(l1));
  const uint64_t entry = table != nullptr ? table->entry(f, index) : 0;
  const bool whole = first == 0 && last == 32;
  if (f.kind(entry) == ClusterKind::kCompressed && !whole) return false;  // compressed clusters have no subclusters
  const uint64_t touched = subcluster_mask(first, last);
  table = TRY(writable_table(l1));
  dirty_tables_.insert(l1);
  const uint64_t old_bitmap = f.kind(entry) == ClusterKind::kCompressed ? 0 : table->bitmap(index);
  const uint64_t bitmap = (old_bitmap & ~touched) | touched << 32;
  const bool drop = f.kind(entry) == ClusterKind::kCompressed || (whole && kind != ZeroKind::kKeepAllocated);
  if (drop) TRY(drop_cluster(guest_cluster, entry));
  set_entry(*table, index, drop ? 0 : entry, bitmap);
  return true;
}

Result<void> ImageWriter::unmap_everything() {
  CHECK(dirty_tables_.empty() && dirty_l1_.empty());
  const EntryFormat& f = mapping_.format();
  for (uint64_t l1 = 0; l1 < mapping_.l1().size(); ++l1) {
    const L2Table* table = TRY(mapping_.table(l1));
    if (table == nullptr) continue;
    for (uint64_t index = 0; index < mapping_.entries_per_table(); ++index)
      TRY(drop_cluster(mapping_.guest_cluster(l1, index), table->entry(f, index)));
    freed_.emplace_back(table->host_offset / cluster_size(), 1);
    mapping_.l1()[l1] = 0;
    dirty_l1_.insert(l1);
    mapping_.trim(kMaxDirtyBytes);
  }
  mapping_.forget_tables();
  metadata_.reset();
  return {};
}

Result<void> ImageWriter::trim_file() {
  TRY(refcounts_.load_all());
  const uint64_t size = TRY(file_.size());
  const uint64_t clusters = div_round_up(size, cluster_size());
  uint64_t end = clusters;
  while (end > 1 && refcounts_.all_loaded_equal(end - 1, 1, 0)) --end;
  if (end == clusters) return {};
  return file_.resize(end * cluster_size());
}

bool ImageWriter::wants_write_back() const {
  return dirty_tables_.size() * cluster_size() > kMaxDirtyBytes;
}

Result<void> ImageWriter::write_back() {
  TRY(check_usable());
  auto result = write_back_ordered();
  if (!result) failed_ = true;
  return result;
}

Result<void> ImageWriter::write_refcount_table() {
  // A table in a new place is complete there before the header names it.
  const auto bytes = refcounts_.table_bytes();
  TRY(file_.write_at(refcounts_.table_offset(), bytes));
  TRY(file_.flush());  // blocks and table | the header that points at them
  refcounts_.set_table_written();
  if (refcounts_.table_offset() == header_.refcount_table_offset) return {};
  header_.refcount_table_offset = refcounts_.table_offset();
  header_.refcount_table_clusters = refcounts_.table_clusters();
  std::array<std::byte, kHeaderSectorSize> sector;
  TRY(file_.read_at(0, sector));
  patch_header_sector(header_, sector);
  TRY(file_.write_at(0, sector));
  TRY(file_.flush());  // the header | clusters that only the new table counts
  for (const auto& old : refcounts_.superseded_tables()) freed_.push_back(old);
  refcounts_.superseded_tables().clear();
  return {};
}

Result<void> ImageWriter::write_back_ordered() {
  if (header_.has_data_file()) TRY(data_.device().flush());  // guest data | tables that refer to it, or stop doing so
  // Clusters are in the file whole, and so are the sectors that compressed data ends in. What is being written just now
  // lies in front of the new end, too: it must not be cut off.
  if (uint64_t end = std::max(file_end_, align_up(pack_offset_, 512)); TRY(file_.size()) < end) {
    for (const FreshClusters& f : being_written_) end = std::max(end, f.host + f.count * cluster_size());
    TRY(file_.resize(end));
  }
  file_end_ = 0;
  if (refcounts_.any_dirty() || filled_places_) {
    TRY(refcounts_.place_blocks());
    TRY(refcounts_.write_dirty_blocks());
    TRY(file_.flush());  // refcounts and guest data | whatever refers to them
    filled_places_ = false;
  }
  if (refcounts_.table_changed()) {
    TRY(write_refcount_table());
    metadata_.reset();
  }
  for (const uint64_t index : dirty_tables_) {
    L2Table* table = TRY(mapping_.table(index));
    if (!table->dirty) continue;
    TRY(file_.write_at(table->host_offset, std::as_bytes(std::span(table->words))));
    table->dirty = false;
  }
  dirty_tables_.clear();
  if (!dirty_l1_.empty()) {
    TRY(file_.flush());     // L2 tables | the L1 entries that point at them
    std::vector<be64> run;  // of neighbours: each may reach the disk without the others
    for (auto at = dirty_l1_.begin(); at != dirty_l1_.end();) {
      const uint64_t first = *at;
      run.clear();
      for (; at != dirty_l1_.end() && *at == first + run.size(); ++at) run.emplace_back(mapping_.l1()[*at]);
      TRY(file_.write_at(header_.l1_table_offset + first * 8, std::as_bytes(std::span(run))));
    }
    dirty_l1_.clear();
  }
  return file_.flush();  // all references | the release of what nothing refers to any more
}

Result<void> ImageWriter::release_freed() {
  for (const auto& [first, end] : dropped_data_.take()) {
    const uint64_t size = TRY(data_.device().size());
    const uint64_t from = first * cluster_size();
    if (from < size) (void)data_.device().discard(from, std::min((end - first) * cluster_size(), size - from));
  }
  if (freed_.empty()) return {};
  reader_.forget_decompressed();
  pack_offset_ = 0;  // its cluster may be among those that become free
  const std::vector<std::pair<uint64_t, uint64_t>> ranges = merged(std::exchange(freed_, {}));
  for (const auto& [first, count] : ranges) TRY(refcounts_.decrement(first, count));
  uint64_t c = 0;
  for (const auto& [first, count] : ranges) {
    for (c = std::max(c, first); c < first + count;) {
      uint64_t end = c;
      while (end < first + count && refcounts_.get_loaded(end) == 0) ++end;
      if (end == c) {
        ++c;
        continue;
      }
      refcounts_.clusters_freed(c);
      // Before the cluster can be given out again; a failure costs host space only.
      (void)file_.discard(c * cluster_size(), (end - c) * cluster_size());
      c = end;
    }
  }
  TRY(refcounts_.place_blocks());
  if (refcounts_.table_changed()) metadata_.reset();
  return refcounts_.write_dirty_blocks();
}

}  // namespace varve::qcow2
