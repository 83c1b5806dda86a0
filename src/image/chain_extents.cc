#include "image/chain_extents.h"

namespace varve::image {

namespace {

void append(std::vector<OwnedExtent>& extents, const OwnedExtent& extent) {
  if (extent.length == 0) return;
  if (!extents.empty() && extents.back().zero == extent.zero && extents.back().owner == extent.owner) {
    extents.back().length += extent.length;
  } else {
    extents.push_back(extent);
  }
}

Result<void> append_owned(std::span<const ChainLayer> layers, uint64_t offset, uint64_t length,
                          std::vector<OwnedExtent>& result) {
  uint64_t covered = 0;
  if (!layers.empty()) {
    for (const Extent& extent : TRY(layers[0].device->extents(offset, length))) {
      covered += extent.length;
      switch (extent.kind) {
        case ExtentKind::kUnallocated:
          TRY(append_owned(layers.subspan(1), extent.offset, extent.length, result));
          break;
        case ExtentKind::kZero:
          append(result, {extent.offset, extent.length, true, {}});
          break;
        case ExtentKind::kData:
          append(result, {extent.offset, extent.length, false, layers[0].identity});
          break;
      }
    }
  }
  append(result, {offset + covered, length - covered, true, {}});
  return {};
}

}  // namespace

std::vector<ChainLayer> chain_layers(const OpenImage& image, size_t first) {
  std::vector<ChainLayer> result;
  for (size_t i = first; i < image.layers().size(); ++i) {
    const Layer& layer = image.layers()[i];
    // In an external data file, equal guest offsets are equal places, whatever image refers to them.
    result.push_back({image.devices()[i].get(), {layer.data_path ? layer.data : layer.file, layer.format}});
  }
  return result;
}

Result<std::vector<OwnedExtent>> owned_extents(std::span<const ChainLayer> layers, uint64_t offset, uint64_t length) {
  std::vector<OwnedExtent> result;
  TRY(append_owned(layers, offset, length, result));
  return result;
}

}  // namespace varve::image
