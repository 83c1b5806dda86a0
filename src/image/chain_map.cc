#include "image/chain_map.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/checked.h"

namespace varve::image {

namespace {

// QEMU's own rule, so that `map` says what qemu-img says: a file whose clusters in use are clearly more than what the
// file system holds was preallocated without its data.
Result<bool> looks_preallocated(qcow2::Image& image) {
  struct stat st = {};
  if (::stat(image.name().c_str(), &st) != 0) return false;
  const uint64_t cluster_size = image.header().cluster_size();
  const uint64_t held = static_cast<uint64_t>(st.st_blocks) * 512 / cluster_size;
  const uint64_t enough = std::max(held * 10 / 9, held + 2);
  if (div_round_up(TRY(image.file().size()), cluster_size) < enough) return false;
  const Result<uint64_t> used = image.used_clusters(enough);
  return used && *used >= enough;  // refcounts that can't be read are the check's business
}

}  // namespace

Result<ChainMap> ChainMap::open(const OpenImage& image, TopFilters top) {
  ChainMap map;
  for (size_t i = 0; i < image.devices().size(); ++i) {
    BlockDevice* device = image.devices()[i].get();
    std::vector<DebugDevice*> filters;
    BlockDevice* disk = device;
    while (auto* filter = dynamic_cast<DebugDevice*>(disk)) {
      filters.push_back(filter);
      disk = filter->below().get();
    }
    if (i == 0 && top == TopFilters::kSkipped) {
      filters.clear();
      device = disk;
    }
    auto* qcow2 = dynamic_cast<qcow2::Image*>(disk);
    const bool holes_tell = qcow2 != nullptr && TRY(looks_preallocated(*qcow2));
    const bool has_places = image.layers()[i].format == Format::kRaw ||
                            (qcow2 != nullptr && qcow2->header().crypt_method == qcow2::CryptMethod::kNone);
    map.layers_.push_back({device, std::move(filters), qcow2, has_places, TRY(device->size()), holes_tell});
  }
  map.size_ = map.layers_.front().size;
  return map;
}

Result<std::vector<ChainExtent>> ChainMap::extents(uint64_t offset, uint64_t length) {
  std::vector<ChainExtent> result;
  if (offset >= size_) return result;
  TRY(append(0, offset, std::min(length, size_ - offset), result));
  return result;
}

Result<void> ChainMap::append_data(size_t depth, const ChainExtent& extent, std::vector<ChainExtent>& result) {
  if (!layers_[depth].holes_tell || !extent.host_offset || extent.compressed) {
    result.push_back(extent);
    return {};
  }
  uint64_t covered = 0;
  const auto piece = [&](uint64_t length, bool zero) {
    ChainExtent part = extent;
    part.offset += covered;
    part.length = length;
    *part.host_offset += covered;
    part.zero = zero;
    result.push_back(part);
    covered += length;
  };
  for (const Extent& e : TRY(layers_[depth].qcow2->data().extents(*extent.host_offset, extent.length)))
    piece(e.length, e.kind == ExtentKind::kZero);
  if (covered < extent.length) piece(extent.length - covered, true);  // behind the end of the file
  return {};
}

Result<void> ChainMap::append(size_t depth, uint64_t offset, uint64_t length, std::vector<ChainExtent>& result) {
  Layer& layer = layers_[depth];
  const auto at = static_cast<uint32_t>(depth);
  if (layer.qcow2 == nullptr) {
    for (const Extent& e : TRY(layer.device->extents(offset, length))) {
      const bool zero = e.kind == ExtentKind::kZero;
      result.push_back({e.offset, e.length, at, true, zero, !zero, false,
                        layer.has_places ? std::optional(e.offset) : std::nullopt});
    }
    return {};
  }
  for (DebugDevice* filter : layer.filters) TRY(filter->admit_block_status(offset, length));
  for (const qcow2::PlacedExtent& e : TRY(layer.qcow2->placed_extents(offset, length))) {
    ChainExtent extent{e.offset, e.length, at, true, false, false, e.compressed, e.host_offset};
    if (!layer.has_places) extent.host_offset.reset();  // what lies there is not what the guest sees
    switch (e.kind) {
      case ExtentKind::kData:
        extent.data = true;
        TRY(append_data(depth, extent, result));
        break;
      case ExtentKind::kZero:
        extent.zero = true;
        result.push_back(extent);
        break;
      case ExtentKind::kUnallocated: {
        const bool has_below = depth + 1 < layers_.size();
        const uint64_t below = has_below ? layers_[depth + 1].size : 0;
        const uint64_t shown = e.offset >= below ? 0 : std::min(e.length, below - e.offset);
        if (shown != 0) TRY(append(depth + 1, e.offset, shown, result));
        if (shown == e.length) break;
        extent.offset += shown;
        extent.length -= shown;
        if (extent.host_offset) *extent.host_offset += shown;
        extent.present = false;
        extent.zero = true;
        result.push_back(extent);
        break;
      }
    }
  }
  return {};
}

}  // namespace varve::image
