// Image's persistent dirty bitmaps: stored anew as a whole, and kept up while the guest's disk is written to.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/header_update.h"
#include "qcow2/image_state.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kAllOnes = 1;

// Writes one bitmap's data and table into free clusters; returns where the table is.
Result<Bitmap> write_bitmap(BlockDevice& file, Refcounts& refcounts, const DirtyBitmap& bitmap) {
  const uint64_t cluster_size = refcounts.cluster_size();
  Bitmap stored;
  stored.name = bitmap.name;
  stored.granularity = bitmap.granularity;
  stored.automatic = bitmap.recording;
  stored.table_entries = div_round_up(bitmap.bits.size(), cluster_size);
  if (stored.table_entries == 0) return stored;
  std::vector<be64> table(align_up(stored.table_entries * 8, cluster_size) / 8);
  std::vector<std::byte> cluster(cluster_size);
  for (size_t i = 0; i < stored.table_entries; ++i) {
    const auto piece = std::span(bitmap.bits).subspan(i * cluster_size);
    const auto bits = piece.first(std::min<size_t>(piece.size(), cluster_size));
    const auto all = [&](std::byte value) {
      return std::ranges::all_of(bits, [&](std::byte b) { return b == value; });
    };
    if (all(std::byte{0})) continue;
    if (all(std::byte{0xff}) && bits.size() == cluster_size) {
      table[i] = kAllOnes;
      continue;
    }
    std::ranges::fill(cluster, std::byte{0});
    std::ranges::copy(bits, cluster.begin());
    const uint64_t at = TRY(refcounts.allocate(1)) * cluster_size;
    TRY(file.write_at(at, cluster));
    table[i] = at;
  }
  stored.table_offset = TRY(refcounts.allocate(table.size() * 8 / cluster_size)) * cluster_size;
  TRY(file.write_at(stored.table_offset, std::as_bytes(std::span(table))));
  return stored;
}

}  // namespace

Result<std::vector<DirtyBitmap>> Image::bitmaps() {
  return load_bitmaps(*state_->file, state_->header);
}

Result<void> Image::store_bitmaps(std::span<const DirtyBitmap> bitmaps) {
  if (!state_->writer)
    return make_error(ErrorKind::kPermission, fmt::format("{}: the image is open for reading only", name()));
  if (state_->header.version < 3)
    return make_error(ErrorKind::kUnsupported, "Cannot store dirty bitmaps in qcow2 v2 files").with_note(name());
  if (bitmaps.size() > kMaxBitmaps)
    return make_error(ErrorKind::kUnsupported, fmt::format("Maximum number of persistent bitmaps is {}", kMaxBitmaps));
  if (bitmaps.empty() && !state_->header.bitmaps) return {};
  TRY(flush());
  const std::unique_lock io(state_->io_lock);
  const std::lock_guard lock(state_->metadata_lock);
  BlockDevice& file = *state_->file;
  ImageWriter& writer = *state_->writer;
  const uint64_t cluster_size = state_->header.cluster_size();

  const auto store = [&]() -> Result<void> {
    // What goes: everything but the bitmaps that stay as they are.
    ClusterRuns gone;
    if (const auto& old = state_->header.bitmaps) {
      gone.emplace_back(old->directory_offset / cluster_size, div_round_up(old->directory_size, cluster_size));
      for (const Bitmap& b : TRY(read_bitmap_directory(file, state_->header, *old))) {
        const bool stays = std::ranges::any_of(
            bitmaps, [&](const DirtyBitmap& d) { return d.inconsistent && d.at.table_offset == b.table_offset; });
        if (stays) continue;
        const ClusterRuns runs = TRY(clusters_of(file, state_->header, b));
        gone.insert(gone.end(), runs.begin(), runs.end());
      }
    }
    Header next = state_->header;
    next.autoclear_features &= ~uint64_t{kAutoclearBitmaps};
    next.bitmaps.reset();
    if (!bitmaps.empty()) {
      std::vector<Bitmap> directory;
      for (const DirtyBitmap& b : bitmaps)
        directory.push_back(b.inconsistent ? b.at : TRY(write_bitmap(file, writer.refcounts(), b)));
      const std::vector<std::byte> bytes = serialize_bitmap_directory(directory);
      const uint64_t clusters = div_round_up(bytes.size(), cluster_size);
      const uint64_t at = TRY(writer.refcounts().allocate(clusters)) * cluster_size;
      TRY(file.write_at(at, bytes));
      next.bitmaps = BitmapsExtension{static_cast<uint32_t>(directory.size()), bytes.size(), at};
      TRY(writer.write_back());  // refcounts and bitmaps | the header that names them
      next.refcount_table_offset = state_->header.refcount_table_offset;
      next.refcount_table_clusters = state_->header.refcount_table_clusters;
    }
    // First where they are, but not that they can be trusted; then that. The extension need not lie in one sector.
    TRY(replace_header(file, next));
    if (next.bitmaps) {
      next.autoclear_features |= kAutoclearBitmaps;
      std::array<std::byte, kHeaderSectorSize> sector;
      TRY(file.read_at(0, sector));
      patch_header_sector(next, sector);
      TRY(file.write_at(0, sector));
      TRY(file.flush());  // the new bitmaps | the reuse of the old ones' clusters
    }
    TRY(state_->load());
    for (const auto& [first, count] : gone) writer.release(first, count);
    return writer.release_freed();
  };
  auto result = store();
  if (!result) writer.give_up();
  const std::lock_guard recording(state_->bitmaps_lock);
  state_->recording.clear();
  state_->recording_started = false;
  return result;
}

Result<void> Image::record_write(uint64_t offset, uint64_t length) {
  if (!state_->header.bitmaps) return {};
  {  // else the directory may not be where the header in memory says
    const std::lock_guard metadata(state_->metadata_lock);
    TRY(state_->writer->check_usable());
  }
  const std::lock_guard lock(state_->bitmaps_lock);
  if (!state_->recording_started) TRY(start_recording());
  for (DirtyBitmap& b : state_->recording) b.insert(offset, length);
  return {};
}

// The file says "in use" of every bitmap that is about to miss writes there.
Result<void> Image::start_recording() {
  std::vector<DirtyBitmap> all = TRY(bitmaps());
  std::erase_if(all, [](const DirtyBitmap& b) { return b.inconsistent || !b.recording; });
  if (!all.empty()) {
    std::vector<Bitmap> directory = TRY(read_bitmap_directory(*state_->file, state_->header, *state_->header.bitmaps));
    for (Bitmap& b : directory) b.in_use = b.in_use || b.automatic;
    TRY(state_->file->write_at(state_->header.bitmaps->directory_offset, serialize_bitmap_directory(directory)));
    TRY(state_->file->flush());  // "in use" | the first write that they might miss
  }
  state_->recording = std::move(all);
  state_->recording_started = true;
  return {};
}

// What fails here leaves the bitmaps "in use": lost, but not wrong.
void Image::finish_recording() {
  if (state_->recording.empty() || !state_->header.bitmaps) return;
  auto all = bitmaps();
  if (!all) return;
  for (DirtyBitmap& b : *all)
    for (DirtyBitmap& recorded : state_->recording)
      if (b.name == recorded.name) b = std::move(recorded);
  (void)store_bitmaps(*all);
}

}  // namespace varve::qcow2
