#include "cli/image_convert_bitmaps.h"

#include <fmt/format.h>

#include <algorithm>

namespace varve::cli {

using qcow2::DirtyBitmap;

Result<std::vector<DirtyBitmap>> bitmaps_to_copy(const image::OpenImage& source, bool skip_broken) {
  if (source.qcow2() == nullptr || source.qcow2()->header().version < 3)
    return make_error(ErrorKind::kRefused, "Source lacks bitmap support");
  std::vector<DirtyBitmap> bitmaps = TRY(source.qcow2()->bitmaps());
  std::ranges::reverse(bitmaps);
  for (const DirtyBitmap& bitmap : bitmaps) {
    if (!bitmap.inconsistent || skip_broken) continue;
    return make_error(ErrorKind::kRefused,
                      fmt::format("Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'qemu-img "
                                  "bitmap --remove' to delete it",
                                  bitmap.name));
  }
  return bitmaps;
}

Result<void> copy_bitmaps(Output& output, std::span<const DirtyBitmap> bitmaps, uint64_t source_size,
                          const image::OpenImage& target) {
  const qcow2::Header& header = target.qcow2()->header();
  std::vector<DirtyBitmap> all = TRY(target.qcow2()->bitmaps());
  const size_t before = all.size();
  for (const DirtyBitmap& bitmap : bitmaps) {
    if (bitmap.inconsistent) {
      output.error(fmt::format("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
      continue;
    }
    const auto cannot = [&](const char* step, const std::string& why) {
      return make_error(ErrorKind::kRefused, fmt::format("Failed to {} bitmap {}: {}", step, bitmap.name, why));
    };
    if (std::ranges::find(all, bitmap.name, &DirtyBitmap::name) != all.end())
      return cannot("create", "Bitmap already exists: " + bitmap.name);
    DirtyBitmap copy = TRY(qcow2::make_bitmap(bitmap.name, bitmap.granularity, header.size, header.cluster_size()));
    if (source_size != header.size) {
      return cannot("populate", fmt::format("Bitmaps are of different sizes (destination size is {}, source size is "
                                            "{}) and can't be merged",
                                            header.size, source_size));
    }
    qcow2::merge_bitmap(copy, bitmap, header.size);
    copy.recording = bitmap.recording;
    all.insert(all.begin(), std::move(copy));
  }
  return all.size() == before ? Result<void>() : target.qcow2()->store_bitmaps(all);
}

}  // namespace varve::cli
