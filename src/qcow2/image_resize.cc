// Another size for an open image: the L1 table grows, or the tables lose what is cut off; the header sector that says
// the new size is written last.
#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"
#include "qcow2/image.h"
#include "qcow2/image_state.h"

namespace varve::qcow2 {

namespace {

Error refusal(std::string text) {
  return make_error(ErrorKind::kUnsupported, std::move(text));
}

}  // namespace

Result<void> Image::resize(uint64_t new_size) {
  return resize(new_size, false);
}
Result<void> Image::grow_preallocated(uint64_t new_size) {
  CHECK(new_size >= state_->header.size);
  return resize(new_size, true);
}

Result<void> Image::resize(uint64_t new_size, bool with_places) {
  State& s = *state_;
  if (!s.header.bitmaps) return resize_disk(new_size, with_places);
  // A bitmap of the wrong size would be believed. So there are none while the size changes.
  TRY(check_resizable(new_size));
  finish_recording();
  const std::vector<DirtyBitmap> before = TRY(this->bitmaps());
  std::vector<DirtyBitmap> bitmaps = before;
  for (DirtyBitmap& bitmap : bitmaps) {
    if (bitmap.inconsistent) {
      return refusal(fmt::format("Bitmap '{}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to "
                                 "delete this bitmap from disk",
                                 bitmap.name))
          .with_note(fmt::format("`qemu-img bitmap --remove {} {}` removes it", name(), bitmap.name));
    }
    DirtyBitmap resized = TRY(make_bitmap(bitmap.name, bitmap.granularity, new_size, s.header.cluster_size()));
    resized.recording = bitmap.recording;
    std::copy_n(bitmap.bits.begin(), std::min(bitmap.bits.size(), resized.bits.size()), resized.bits.begin());
    for (uint64_t bit = div_round_up(new_size, bitmap.granularity); bit < resized.bits.size() * 8; ++bit)
      resized.bits[bit / 8] &= ~(std::byte{1} << (bit % 8));
    bitmap = std::move(resized);
  }
  TRY(store_bitmaps({}));
  Result<void> resized = resize_disk(new_size, with_places);
  if (resized) return store_bitmaps(bitmaps);
  if (store_bitmaps(before)) return resized;
  return std::move(resized).error().with_note("its bitmaps are gone: the next backup has to be a full one");
}

Result<void> Image::check_resizable(uint64_t new_size) const {
  const State& s = *state_;
  if (!s.writer) {
    return make_error(ErrorKind::kPermission, fmt::format("{}: the image is open for reading only", name()));
  }
  TRY(s.check_readable());
  if (new_size % 512 != 0) return make_error(ErrorKind::kInvalidArgument, "The new size must be a multiple of 512");
  if (!s.snapshots.empty() && s.header.version < 3) return refusal("Can't resize a v2 image which has snapshots");
  if (s.header.l1_entries_for(new_size) * 8 > kMaxL1Bytes)
    return make_error(ErrorKind::kNoSpace, "Failed to grow the L1 table: File too large");
  return {};
}

Result<void> Image::resize_disk(uint64_t new_size, bool with_places) {
  State& s = *state_;
  TRY(check_resizable(new_size));
  const std::unique_lock io(s.io_lock);
  const std::lock_guard lock(s.metadata_lock);
  const uint64_t old_size = s.header.size;
  TRY(s.writer->write_back());
  TRY(s.writer->release_freed());
  const bool has_data_file = s.header.has_data_file();
  if (has_data_file && new_size >= old_size) {
    // What the data file may hold behind the disk's old end is no part of the disk, unless the file is what counts.
    if (!s.header.has_raw_data_file() && TRY(s.data->size()) > old_size) TRY(s.data->resize(old_size));
    if (TRY(s.data->size()) != new_size) TRY(s.data->resize(new_size));
  }
  Result<void> done = new_size < old_size ? s.writer->shrink(new_size) : s.writer->grow(new_size, with_places);
  if (!done) {
    s.header.size = old_size;
    s.writer->give_up();
    return done;
  }
  if (!has_data_file || new_size >= old_size) return {};
  TRY(s.data->resize(new_size));  // after the header: nobody looks for data there any more
  return s.data->flush();
}

// Everything on disk is what memory says, and so it is after each of these; the header on disk says the old size until
// the last write.
Result<void> ImageWriter::write_header_fields() {
  std::array<std::byte, kHeaderSectorSize> sector;
  TRY(file_.read_at(0, sector));
  patch_header_sector(header_, sector);
  TRY(file_.write_at(0, sector));
  return file_.flush();  // the header | whatever counts on it
}

// The L1 table with room for `entries`, in a new place: complete there before the header names it.
Result<void> ImageWriter::grow_l1(uint64_t entries) {
  if (entries * 8 > kMaxL1Bytes) {
    Error error = make_error(ErrorKind::kNoSpace, "Failed to grow the L1 table: File too large");
    return error;
  }
  const uint64_t old_first = header_.l1_table_offset / cluster_size();
  const uint64_t old_clusters = div_round_up(uint64_t{header_.l1_size} * 8, cluster_size());
  const uint64_t clusters = div_round_up(entries * 8, cluster_size());
  const uint64_t first = TRY(refcounts_.allocate(clusters));
  TRY(check_no_metadata(first, clusters));
  const uint64_t place = first * cluster_size();
  TRY(write_back());  // the refcounts of the new place
  mapping_.l1().resize(entries);
  std::vector<be64> table(clusters * cluster_size() / 8);
  std::ranges::copy(mapping_.l1(), table.begin());
  TRY(file_.write_at(place, std::as_bytes(std::span(table))));
  TRY(file_.flush());  // the table | the header that names it
  header_.l1_table_offset = place;
  header_.l1_size = static_cast<uint32_t>(entries);
  TRY(write_header_fields());
  if (old_clusters != 0) freed_.emplace_back(old_first, old_clusters);
  metadata_.reset();
  return release_freed();
}

// Zeroes where the last cluster went on behind the old end, and where a longer backing file would show through.
Result<void> ImageWriter::zero_new_space(uint64_t from, uint64_t end) {
  const uint64_t border = std::min(align_up(from, cluster_size()), end);
  uint64_t below = 0;
  if (backing_ != nullptr) below = TRY(backing_->size());
  if (backing_ == nullptr && header_.backing_file) below = end;  // not opened: it may be of any size
  for (uint64_t at = from; at < border;) {                       // subclusters may differ
    const MappedRun run = TRY(mapping_.lookup(at, border - at));
    const bool shows = run.kind == MappedRun::Kind::kData || run.kind == MappedRun::Kind::kCompressed ||
                       (run.kind == MappedRun::Kind::kUnallocated && below > at);
    if (shows) TRY(write_zero_data(at, at + run.length));
    at += run.length;
  }
  for (uint64_t at = border; at < std::min(below, end);) {
    if (wants_write_back()) {
      header_.size = from;  // write_back() may have to write the header: not with the new size yet
      TRY(write_back());
      header_.size = end;
    }
    const uint64_t length = std::min(std::min(below, end) - at, header_.bytes_per_l2_table());
    const uint64_t done = TRY(zero_by_table(at, length, ZeroKind::kUnmap));
    at += done;
    if (done != 0 || at >= end) continue;
    const uint64_t piece = std::min(cluster_size(), end - at);
    TRY(write_zero_data(at, at + piece));
    at += piece;
  }
  return {};
}

Result<void> ImageWriter::write_zero_data(uint64_t from, uint64_t end) {
  const std::vector<std::byte> zeroes(cluster_size());
  while (from < end) {
    const auto data = std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), end - from));
    if (const InPlace place = TRY(find_in_place(from, data.size())); place.length != 0) {
      TRY(data_.write(place.host_offset, from, data.first(place.length)));
      filled_places_ = true;
      from += place.length;
    } else {
      from += TRY(write_allocating(from, data));
    }
  }
  return {};
}

// Places that are about to be shown: they read as zeroes. What a raw data file has is the guest's, whatever it is.
Result<void> ImageWriter::zero_places(uint64_t first_cluster, uint64_t guest_cluster, uint64_t count) {
  if (header_.has_raw_data_file()) return {};
  const uint64_t offset = first_cluster * cluster_size();
  const uint64_t end = offset + count * cluster_size();
  if (TRY(data_.device().size()) < end) TRY(data_.device().resize(end));
  filled_places_ = true;
  return data_.write_zeroes(offset, guest_cluster, end - offset, ZeroMode::kMayUnmap);
}

Result<void> ImageWriter::preallocate(uint64_t from, uint64_t end) {
  const EntryFormat& f = mapping_.format();
  while (from < end) {
    const uint64_t l1 = mapping_.l1_index(from);
    L2Table* table = TRY(writable_table(l1));
    dirty_tables_.insert(l1);
    const uint64_t last = mapping_.l2_index(std::min(end - 1, mapping_.guest_cluster(l1 + 1, 0) - 1));
    const auto has_place = [&](uint64_t i) {
      const ClusterKind kind = f.kind(table->entry(f, i));
      return kind != ClusterKind::kUnallocated && kind != ClusterKind::kZeroPlain;
    };
    for (uint64_t i = mapping_.l2_index(from); i <= last;) {
      uint64_t wanted = 0;
      while (i + wanted <= last && !has_place(i + wanted)) ++wanted;
      if (wanted == 0) {
        ++i;
        continue;
      }
      const auto [first, count] = TRY(place_data(mapping_.guest_cluster(l1, i), wanted));
      TRY(zero_places(first, mapping_.guest_cluster(l1, i), count));
      for (uint64_t k = 0; k < count; ++k) {
        const uint64_t zeroes = f.extended ? table->bitmap(i + k) & ~uint64_t{0xffffffff} : 0;  // they stay
        set_entry(*table, i + k, (first + k) * cluster_size() | kEntryCopied, zeroes);
      }
      if (f.data_file) dropped_data_.erase(first, count);
      i += count;
    }
    from = mapping_.guest_cluster(l1, last) + cluster_size();
    if (wants_write_back()) TRY(write_back());
  }
  return {};
}

Result<void> ImageWriter::grow(uint64_t new_size, bool with_places) {
  const uint64_t old_size = header_.size;
  const uint64_t entries = header_.l1_entries_for(new_size);
  if (entries > header_.l1_size) TRY(grow_l1(entries));
  header_.size = new_size;
  if (!header_.has_raw_data_file()) TRY(zero_new_space(old_size, new_size));
  header_.size = old_size;  // write_back() may have to write the header: not with the new size yet
  if (header_.has_raw_data_file()) {  // all of it shows what that file has
    const bool whole = mapping_.format().extended;  // where subclusters tell more, the last cluster stays
    TRY(preallocate(whole ? align_up(old_size, cluster_size()) : align_down(old_size, cluster_size()), new_size));
  } else if (with_places) {
    TRY(preallocate(align_up(old_size, cluster_size()), new_size));
  }
  TRY(write_back());
  header_.size = new_size;
  TRY(write_header_fields());
  return release_freed();
}

Result<void> ImageWriter::shrink(uint64_t new_size) {
  const EntryFormat f = mapping_.format();
  const uint64_t from = align_up(new_size, cluster_size());
  for (uint64_t l1 = mapping_.l1_index(from); l1 < mapping_.l1().size(); ++l1) {
    L2Table* table = TRY(mapping_.table(l1));
    if (table == nullptr) continue;
    const uint64_t first = l1 == mapping_.l1_index(from) ? mapping_.l2_index(from) : 0;
    if (first != 0) table = TRY(writable_table(l1));
    for (uint64_t i = first; i < mapping_.entries_per_table(); ++i) {
      TRY(drop_cluster(mapping_.guest_cluster(l1, i), table->entry(f, i)));
      if (first != 0) set_entry(*table, i, 0, 0);
    }
    if (first != 0) {
      dirty_tables_.insert(l1);
      continue;
    }
    freed_.emplace_back(table->host_offset / cluster_size(), 1);
    mapping_.l1()[l1] = 0;
    dirty_l1_.insert(l1);
  }
  TRY(write_back());
  // Tables that went are still in memory.
  mapping_ = TRY(Mapping::open(file_, f, header_.l1_table_offset, header_.l1_size));
  header_.size = new_size;
  metadata_.reset();
  TRY(write_header_fields());
  return release_freed();
}

}  // namespace varve::qcow2
