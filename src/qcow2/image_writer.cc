#include "qcow2/image_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/aligned_vector.h"
#include "base/checked.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

constexpr size_t kMaxDirtyBytes = size_t{32} << 20;
constexpr uint64_t kAllSubclusters = 0xffffffff;

// Bits [first, last) of 32.
uint64_t subcluster_mask(uint64_t first, uint64_t last) {
  return ((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1);
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

// An external data file ends where the disk does; in the image file, clusters are whole.
Result<void> ImageWriter::write_data(uint64_t host, uint64_t guest_offset, std::span<const std::byte> data) {
  if (header_.has_data_file()) data = data.first(std::min<uint64_t>(data.size(), header_.size - guest_offset));
  return data_.write(host, guest_offset, data);
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
  const uint64_t wanted = div_round_up(in_cluster + data.size(), cluster_size());
  const auto can_write_in_place = [&](uint64_t entry) {
    return f.kind(entry) == ClusterKind::kData && (entry & kEntryCopied) != 0;
  };

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

  uint64_t count = 1;
  while (count < wanted && first_index + count < mapping_.entries_per_table()) {
    const uint64_t entry = table.entry(f, first_index + count);
    if (can_write_in_place(entry) || f.kind(entry) == ClusterKind::kZeroAllocated) break;
    ++count;
  }
  const auto [cluster, length] = TRY(place_data(guest_cluster, count));
  const auto piece = data.first(std::min<uint64_t>(data.size(), length * cluster_size() - in_cluster));
  const uint64_t host = cluster * cluster_size();
  if (auto written = write_clusters(host, guest_cluster, offset, piece); !written) {
    forget_place(cluster, length);
    return std::move(written).error();
  }
  for (uint64_t i = 0; i < length; ++i) {
    TRY(drop_cluster(guest_cluster + i * cluster_size(), table.entry(f, first_index + i)));
    set_entry(table, first_index + i, (host + i * cluster_size()) | kEntryCopied, 0);
  }
  if (f.data_file) dropped_data_.erase(cluster, length);
  return piece.size();
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

  if (kind == ClusterKind::kData && (entry & kEntryCopied) != 0) {  // our cluster, subclusters not allocated yet
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
  // Compressed data ends anywhere, and the sectors that an entry speaks of are there whole.
  if (header_.has_data_file()) TRY(data_.device().flush());  // guest data | tables that refer to it, or stop doing so
  if (pack_offset_ % 512 != 0 && TRY(file_.size()) < align_up(pack_offset_, 512))
    TRY(file_.resize(align_up(pack_offset_, 512)));
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
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  std::swap(ranges, freed_);
  for (const auto& [first, count] : ranges) {
    TRY(refcounts_.decrement(first, count));
    for (uint64_t c = first; c < first + count;) {
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
