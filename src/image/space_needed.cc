#include "image/space_needed.h"

#include <algorithm>

#include "base/checked.h"
#include "qcow2/image.h"

namespace varve::image {

namespace {

constexpr uint64_t kWindow = uint64_t{1} << 30;

class Counter {
 public:
  Counter(std::span<const std::shared_ptr<BlockDevice>> layers, size_t base) : layers_(layers), base_(base) {}

  Result<CommitNeeds> count() {
    const uint64_t size = TRY(layers_.front()->size());
    base_size_ = TRY(layers_[base_]->size());
    if (base_size_ < size) needs_.grows_to = size;
    for (uint64_t offset = 0; offset < size; offset += kWindow) TRY(visit(0, offset, std::min(kWindow, size - offset)));
    needs_.new_bytes = needs_.place_bytes - std::min(needs_.place_bytes, TRY(free_places()));
    needs_.new_bytes -= std::min(needs_.new_bytes, given_back_);
    return needs_;
  }

 private:
  Result<void> visit(size_t layer, uint64_t offset, uint64_t length) {
    if (layer == base_) return {};
    uint64_t covered = 0;
    for (const Extent& extent : TRY(layers_[layer]->extents(offset, length))) {
      covered += extent.length;
      if (extent.kind == ExtentKind::kUnallocated) {
        TRY(visit(layer + 1, extent.offset, extent.length));
      } else if (extent.kind == ExtentKind::kZero) {
        TRY(count_zeroes(extent.offset, extent.length));
      } else {
        needs_.data_bytes += extent.length;
        needs_.place_bytes += extent.length - TRY(placed_in_base(extent.offset, extent.length));
      }
    }
    if (covered < length) TRY(count_zeroes(offset + covered, length - covered));  // behind the end of a short layer
    return {};
  }

  // Their places may take the data that comes after them.
  Result<void> count_zeroes(uint64_t offset, uint64_t length) {
    needs_.zero_bytes += length;
    given_back_ += TRY(placed_in_base(offset, length));
    return {};
  }

  Result<uint64_t> placed_in_base(uint64_t offset, uint64_t length) {
    uint64_t placed = 0;
    if (offset >= base_size_) return placed;
    if (auto* image = dynamic_cast<qcow2::Image*>(layers_[base_].get()); image != nullptr) {
      // Zeroes and subclusters may have a place too, which takes what is written there.
      for (const auto& extent : TRY(image->placed_extents(offset, length))) {
        if (extent.host_offset && !extent.compressed) placed += extent.length;
      }
      return placed;
    }
    for (const Extent& extent : TRY(layers_[base_]->extents(offset, length)))
      if (extent.kind == ExtentKind::kData) placed += extent.length;
    return placed;
  }

  // Clusters inside of the base's file that nothing refers to: they may have their blocks already.
  Result<uint64_t> free_places() {
    auto* image = dynamic_cast<qcow2::Image*>(layers_[base_].get());
    if (image == nullptr || needs_.place_bytes == 0) return uint64_t{0};
    if (image->header().has_data_file()) return needs_.place_bytes;  // it may have them all
    const uint64_t cluster = image->header().cluster_size();
    const uint64_t there = div_round_up(TRY(image->file().size()), cluster);
    const uint64_t used = TRY(image->used_clusters(there));
    return (there - std::min(there, used)) * cluster;
  }

  std::span<const std::shared_ptr<BlockDevice>> layers_;
  size_t base_;
  uint64_t base_size_ = 0;
  uint64_t given_back_ = 0;
  CommitNeeds needs_;
};

}  // namespace

Result<CommitNeeds> commit_needs(std::span<const std::shared_ptr<BlockDevice>> layers, size_t base) {
  return Counter(layers, base).count();
}

}  // namespace varve::image
