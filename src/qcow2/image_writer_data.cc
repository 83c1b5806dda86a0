// The part of ImageWriter that places and writes guest data.
#include <algorithm>
#include <cstring>

#include "base/aligned_vector.h"
#include "base/checked.h"
#include "qcow2/image_writer.h"

namespace varve::qcow2 {

// An external data file ends where the disk does; in the image file, clusters are whole.
Result<void> ImageWriter::write_data(uint64_t host, uint64_t guest_offset, std::span<const std::byte> data) {
  if (header_.has_data_file()) data = data.first(std::min<uint64_t>(data.size(), header_.size - guest_offset));
  return data_.write(host, guest_offset, data);
}

// Whether a place in the file, from `host` on, reads as zeroes until it is written.
Result<bool> ImageWriter::lies_past_file(uint64_t host) {
  const bool in_file = &data_.device() == &file_;  // neither encrypted nor in an external data file
  return in_file && file_.capabilities().grows_by_zeroes && TRY(file_.size()) <= host;
}

// By the tables alone: false where nobody looked further.
Result<bool> ImageWriter::reads_as_zeroes(uint64_t offset, uint64_t length) {
  const uint64_t below = backing_ != nullptr ? TRY(backing_->size()) : 0;
  const uint64_t end = std::min(offset + length, header_.size);  // the last cluster may go on behind the disk
  while (offset < end) {
    const MappedRun run = TRY(mapping_.lookup(offset, end - offset));
    const bool zero =
        run.kind == MappedRun::Kind::kZero || (run.kind == MappedRun::Kind::kUnallocated && offset >= below);
    if (!zero) return false;
    offset += run.length;
  }
  return true;
}

// Writes `data` at guest `offset` into fresh clusters at `host` that stand for the guest from `guest_cluster` on, and
// around it, up to the cluster borders, what the guest saw there before.
Result<void> ImageWriter::write_clusters(uint64_t host, uint64_t guest_cluster, uint64_t offset,
                                         std::span<const std::byte> data) {
  const uint64_t head = offset - guest_cluster;
  const uint64_t end = align_up(head + data.size(), cluster_size());
  const uint64_t tail = end - head - data.size();
  const auto old = [&](uint64_t guest, std::span<std::byte> buffer) -> Result<void> {
    const uint64_t there = guest < header_.size ? std::min<uint64_t>(buffer.size(), header_.size - guest) : 0;
    if (there < buffer.size()) std::memset(buffer.data() + there, 0, buffer.size() - there);
    return reader_.read(mapping_, nullptr, backing_.get(), guest, buffer.first(there));
  };
  if (head == 0 && tail == 0) return data_.write(host, guest_cluster, data);
  if (TRY(lies_past_file(host)) && TRY(reads_as_zeroes(guest_cluster, head)) &&
      TRY(reads_as_zeroes(offset + data.size(), tail))) {
    file_end_ = std::max(file_end_, host + end);
    return data_.write(host + head, offset, data);
  }
  // One write, so that a preallocated or reused cluster is never half old for longer than it must.
  AlignedVector<std::byte> whole(end);
  TRY(old(guest_cluster, std::span(whole).first(head)));
  std::memcpy(&whole[head], data.data(), data.size());
  TRY(old(offset + data.size(), std::span(whole).subspan(head + data.size())));
  return write_data(host, guest_cluster, whole);
}

Result<uint64_t> ImageWriter::write_allocating(uint64_t offset, std::span<const std::byte> data) {
  const uint64_t l1 = mapping_.l1_index(offset);
  L2Table* table = TRY(writable_table(l1));
  const uint64_t table_end = align_down(offset, header_.bytes_per_l2_table()) + header_.bytes_per_l2_table();
  data = data.first(std::min<uint64_t>(data.size(), table_end - offset));
  dirty_tables_.insert(l1);
  return mapping_.format().extended ? write_extended(*table, offset, data) : write_standard(*table, offset, data);
}

Result<uint64_t> ImageWriter::write_standard(L2Table& table, uint64_t offset, std::span<const std::byte> data) {
  const EntryFormat& f = mapping_.format();
  const uint64_t guest_cluster = align_down(offset, cluster_size());
  const uint64_t in_cluster = offset - guest_cluster;
  const uint64_t first_index = mapping_.l2_index(offset);

  // A zero cluster that keeps its own place: fill the place, then take the flag away.
  const uint64_t first_entry = table.entry(f, first_index);
  if (f.kind(first_entry) == ClusterKind::kZeroAllocated && (first_entry & kEntryCopied) != 0) {
    const auto piece = data.first(std::min<uint64_t>(data.size(), cluster_size() - in_cluster));
    const uint64_t host = first_entry & kOffsetMask;
    if (!f.data_file) TRY(check_no_metadata(host / cluster_size(), 1));
    filled_places_ = true;
    TRY(write_clusters(host, guest_cluster, offset, piece));
    set_entry(table, first_index, host | kEntryCopied, 0);
    return piece.size();
  }

  return write_fresh(table, offset, data);
}

// Whether a write to the cluster of this entry takes a new place.
bool ImageWriter::needs_place(uint64_t entry) const {
  const ClusterKind kind = mapping_.format().kind(entry);
  if (kind == ClusterKind::kData || kind == ClusterKind::kZeroAllocated) return (entry & kEntryCopied) == 0;
  return true;
}

// New places for the clusters from `offset` to at most offset + length that need one; the first one does.
Result<ImageWriter::FreshClusters> ImageWriter::place_fresh(const L2Table& table, uint64_t offset, uint64_t length) {
  const uint64_t guest_cluster = align_down(offset, cluster_size());
  const uint64_t first_index = mapping_.l2_index(offset);
  const uint64_t end_index = std::min(first_index + div_round_up(offset - guest_cluster + length, cluster_size()),
                                      mapping_.entries_per_table());
  uint64_t index = first_index + 1;
  while (index < end_index && needs_place(table.entry(mapping_.format(), index))) ++index;
  const auto [cluster, count] = TRY(place_data(guest_cluster, index - first_index));
  return FreshClusters{guest_cluster, cluster * cluster_size(), count};
}

// From now on the guest sees what was written there.
Result<void> ImageWriter::link_fresh(L2Table& table, const FreshClusters& fresh) {
  const EntryFormat& f = mapping_.format();
  const uint64_t first_index = mapping_.l2_index(fresh.guest_cluster);
  for (uint64_t i = 0; i < fresh.count; ++i) {
    TRY(drop_cluster(fresh.guest_cluster + i * cluster_size(), table.entry(f, first_index + i)));
    set_entry(table, first_index + i, (fresh.host + i * cluster_size()) | kEntryCopied,
              f.extended ? kAllSubclusters : 0);
  }
  if (f.data_file) dropped_data_.erase(fresh.host / cluster_size(), fresh.count);
  return {};
}

Result<uint64_t> ImageWriter::write_fresh(L2Table& table, uint64_t offset, std::span<const std::byte> data) {
  const FreshClusters fresh = TRY(place_fresh(table, offset, data.size()));
  const uint64_t there = fresh.guest_cluster + fresh.count * cluster_size() - offset;
  const auto piece = data.first(std::min<uint64_t>(data.size(), there));
  if (auto written = write_clusters(fresh.host, fresh.guest_cluster, offset, piece); !written) {
    forget_place(fresh.host / cluster_size(), fresh.count);
    return std::move(written).error();
  }
  TRY(link_fresh(table, fresh));
  return piece.size();
}

Result<ImageWriter::FreshClusters> ImageWriter::begin_whole(uint64_t offset, uint64_t length) {
  TRY(check_usable());
  length = align_down(length, cluster_size());
  if (offset % cluster_size() != 0 || length == 0) return FreshClusters{};
  const uint64_t l1 = mapping_.l1_index(offset);
  L2Table* table = TRY(writable_table(l1));
  dirty_tables_.insert(l1);
  if (!needs_place(table->entry(mapping_.format(), mapping_.l2_index(offset)))) return FreshClusters{};
  const FreshClusters fresh = TRY(place_fresh(*table, offset, length));
  being_written_.push_back(fresh);
  return fresh;
}

Result<void> ImageWriter::end_whole(const FreshClusters& fresh, Result<void> written) {
  std::erase_if(being_written_, [&](const FreshClusters& f) { return f.guest_cluster == fresh.guest_cluster; });
  if (!written) {
    forget_place(fresh.host / cluster_size(), fresh.count);
    return written;
  }
  TRY(check_usable());
  // The table may have been written and let go in the meantime; the data has perhaps not been flushed with it.
  const uint64_t l1 = mapping_.l1_index(fresh.guest_cluster);
  L2Table* table = TRY(writable_table(l1));
  dirty_tables_.insert(l1);
  filled_places_ = true;
  return link_fresh(*table, fresh);
}

bool ImageWriter::is_being_written(uint64_t offset, uint64_t length) const {
  return std::any_of(being_written_.begin(), being_written_.end(), [&](const FreshClusters& f) {
    return offset < f.guest_cluster + f.count * cluster_size() && f.guest_cluster < offset + length;
  });
}

Result<uint64_t> ImageWriter::write_extended(L2Table& table, uint64_t offset, std::span<const std::byte> data) {
  const EntryFormat& f = mapping_.format();
  const uint64_t guest_cluster = align_down(offset, cluster_size());
  const uint64_t in_cluster = offset - guest_cluster;
  const uint64_t index = mapping_.l2_index(offset);
  const uint64_t entry = table.entry(f, index);
  const uint64_t bitmap = table.bitmap(index);
  const auto piece = data.first(std::min<uint64_t>(data.size(), cluster_size() - in_cluster));
  const uint64_t subcluster = cluster_size() / 32;
  const uint64_t first = in_cluster / subcluster;
  const uint64_t last = div_round_up(in_cluster + piece.size(), subcluster);
  const uint64_t touched = subcluster_mask(first, last);
  const ClusterKind kind = f.kind(entry);
  const bool ours = kind == ClusterKind::kData && (entry & kEntryCopied) != 0;
  if (!ours && in_cluster == 0 && data.size() >= cluster_size())
    return write_fresh(table, offset, data.first(align_down(data.size(), cluster_size())));

  // The touched subclusters whole, the guest's bytes in the middle.
  const auto read_around = [&](uint64_t from, uint64_t to, AlignedVector<std::byte>& buffer) -> Result<void> {
    buffer.resize(to - from);
    const uint64_t guest = guest_cluster + from;
    const uint64_t there = guest < header_.size ? std::min<uint64_t>(buffer.size(), header_.size - guest) : 0;
    TRY(reader_.read(mapping_, nullptr, backing_.get(), guest, std::span(buffer).first(there)));
    std::memcpy(&buffer[in_cluster - from], piece.data(), piece.size());
    return {};
  };
  AlignedVector<std::byte> buffer;
  const uint64_t new_alloc = ((bitmap & kAllSubclusters) | touched) & kAllSubclusters;
  const uint64_t new_zero = (bitmap >> 32) & ~touched;

  if (ours) {  // subclusters not allocated yet
    if (!f.data_file) TRY(check_no_metadata((entry & kOffsetMask) / cluster_size(), 1));
    TRY(read_around(first * subcluster, last * subcluster, buffer));
    filled_places_ = true;
    TRY(write_data((entry & kOffsetMask) + first * subcluster, guest_cluster + first * subcluster, buffer));
    set_entry(table, index, entry, new_alloc | new_zero << 32);
    return piece.size();
  }
  const bool had_content = kind == ClusterKind::kData || kind == ClusterKind::kCompressed;
  const uint64_t from = had_content ? 0 : first * subcluster;
  const uint64_t to = had_content ? cluster_size() : last * subcluster;
  TRY(read_around(from, to, buffer));
  const uint64_t cluster = TRY(place_data(guest_cluster, 1)).first;
  if (auto written = write_data(cluster * cluster_size() + from, guest_cluster + from, buffer); !written) {
    forget_place(cluster, 1);
    return std::move(written).error();
  }
  TRY(drop_cluster(guest_cluster, entry));
  const uint64_t new_bitmap = kind == ClusterKind::kCompressed ? kAllSubclusters : new_alloc | new_zero << 32;
  set_entry(table, index, cluster * cluster_size() | kEntryCopied, new_bitmap);
  if (f.data_file) dropped_data_.erase(cluster, 1);
  return piece.size();
}

// Places for up to `count` clusters of guest data, {first cluster, how many}. In an external data file everything has
// its place already, at the guest's own offset, and nothing is counted (specification, "External data file").
Result<std::pair<uint64_t, uint64_t>> ImageWriter::place_data(uint64_t guest_cluster, uint64_t count) {
  if (header_.has_data_file()) return std::pair{guest_cluster / cluster_size(), count};
  const auto place = TRY(refcounts_.allocate_up_to(count));
  TRY(check_no_metadata(place.first, place.second));
  return place;
}

// Nothing will refer to what place_data() gave.
void ImageWriter::forget_place(uint64_t first_cluster, uint64_t count) {
  if (!header_.has_data_file()) freed_.emplace_back(first_cluster, count);
}

// Counts a place of `length` bytes for a compressed cluster. Every compressed cluster counts once in each host cluster
// that it touches.
Result<uint64_t> ImageWriter::place_compressed(uint64_t length) {
  const uint64_t max_refcount = header_.refcount_order == 6 ? UINT64_MAX : (uint64_t{1} << header_.refcount_bits()) - 1;
  uint64_t room = 0;
  if (pack_offset_ != 0) {
    const uint64_t count = TRY(refcounts_.get(pack_offset_ / cluster_size()));
    room = count == 0 || count >= max_refcount ? 0 : align_up(pack_offset_, cluster_size()) - pack_offset_;
  }
  uint64_t offset = pack_offset_;
  uint64_t present = 0;  // the stream begins in this host cluster, which others use, too
  if (room >= length) {
    present = offset / cluster_size();
  } else {
    const uint64_t fresh = TRY(refcounts_.allocate(1)) * cluster_size();
    TRY(check_no_metadata(fresh / cluster_size(), 1));
    if (room != 0 && align_up(offset, cluster_size()) == fresh)
      present = offset / cluster_size();
    else
      offset = fresh;
  }
  if (present != 0) {
    if (auto counted = refcounts_.increment(present, 1); !counted) return std::move(counted).error();
  }
  pack_offset_ = offset + length;
  if (pack_offset_ % cluster_size() == 0) pack_offset_ = 0;
  return offset;
}

Result<void> ImageWriter::write_compressed(uint64_t guest_cluster, std::span<const std::byte> stream) {
  TRY(check_usable());
  const EntryFormat& f = mapping_.format();
  const uint64_t l1 = mapping_.l1_index(guest_cluster);
  const uint64_t index = mapping_.l2_index(guest_cluster);
  L2Table* table = TRY(writable_table(l1));
  dirty_tables_.insert(l1);
  const uint64_t offset = TRY(place_compressed(stream.size()));
  const uint64_t sectors = (offset + stream.size() - 1) / 512 - offset / 512;
  const uint64_t entry = kEntryCompressed | sectors << (62 - (f.cluster_bits - 8)) | offset;
  if (auto written = file_.write_at(offset, stream); !written) {
    const uint64_t first = offset / cluster_size();
    freed_.emplace_back(first, (offset + stream.size() - 1) / cluster_size() - first + 1);
    return written;
  }
  TRY(drop_cluster(guest_cluster, table->entry(f, index)));
  set_entry(*table, index, entry, 0);
  return {};
}

}  // namespace varve::qcow2
