#include "image/measure.h"

#include <algorithm>

#include "base/checked.h"
#include "image/chain_map.h"
#include "image/raw_image.h"
#include "qcow2/bitmap_directory.h"

namespace varve::image {

namespace {

constexpr uint64_t kWindow = uint64_t{1} << 32;  // guest bytes whose map is in memory at a time

// The file that holds `size` guest bytes, all allocated; sizes in bytes.
uint64_t allocated_file(uint64_t size, const MeasureTarget& t) {
  const uint64_t entry = t.extended_l2 ? 16 : 8;
  const uint64_t data = align_up(size, t.cluster_size);
  const uint64_t l2_entries = align_up(data / t.cluster_size, t.cluster_size / entry);
  const uint64_t l1_entries = align_up(l2_entries * entry / t.cluster_size, t.cluster_size / 8);
  const uint64_t counted = (t.cluster_size + l2_entries * entry + l1_entries * 8 + data) / t.cluster_size;
  // Refcount blocks and table count themselves.
  uint64_t blocks = 0;
  uint64_t table = 0;
  for (;;) {
    const uint64_t more = div_round_up(counted + blocks + table, t.cluster_size * 8 / t.refcount_bits);
    const uint64_t more_table = div_round_up(more * 8, t.cluster_size);
    if (more == blocks && more_table == table) break;
    blocks = more;
    table = more_table;
  }
  return (counted + blocks + table) * t.cluster_size;
}

Result<void> check_size(uint64_t size, const MeasureTarget& t) {
  const uint64_t l2_entries = t.cluster_size / (t.extended_l2 ? 16 : 8);
  if (div_round_up(div_round_up(size, t.cluster_size), l2_entries) * 8 <= qcow2::kMaxL1Bytes) return {};
  return make_error(ErrorKind::kInvalidArgument, "The image size is too large (try using a larger cluster size)");
}

// Clusters of the target that data of the source falls into.
class Counter {
 public:
  explicit Counter(uint64_t cluster_size) : cluster_size_(cluster_size) {}
  void add(uint64_t offset, uint64_t length) {
    const uint64_t first = std::max(offset / cluster_size_, next_);
    const uint64_t end = div_round_up(offset + length, cluster_size_);
    if (end <= first) return;
    clusters_ += end - first;
    next_ = end;
  }
  uint64_t bytes() const { return clusters_ * cluster_size_; }

 private:
  uint64_t cluster_size_;
  uint64_t next_ = 0;
  uint64_t clusters_ = 0;
};

Result<uint64_t> snapshot_bytes(const OpenImage& image, size_t index, const MeasureTarget& target) {
  const auto view = TRY(image.qcow2()->open_snapshot(index));
  std::vector<BlockDevice*> layers = {view.get()};
  for (size_t i = 1; i < image.devices().size(); ++i) layers.push_back(image.devices()[i].get());
  const uint64_t size = std::min(TRY(view->size()), TRY(image.device()->size()));
  Counter counter(target.cluster_size);
  for (uint64_t at = 0; at < size; at += kWindow)
    for (const Extent& e : TRY(visible_extents(layers, at, std::min(kWindow, size - at))))
      if (e.kind == ExtentKind::kData) counter.add(e.offset, e.length);
  return counter.bytes();
}

Result<uint64_t> data_bytes(const OpenImage& image, const MeasureTarget& target) {
  ChainMap map = TRY(ChainMap::open(image));
  Counter counter(target.cluster_size);
  for (uint64_t at = 0; at < map.size(); at += kWindow)
    for (const ChainExtent& e : TRY(map.extents(at, std::min(kWindow, map.size() - at))))
      if (e.data && !e.zero) counter.add(e.offset, e.length);
  return counter.bytes();
}

Result<uint64_t> bitmap_bytes(const OpenImage& image, const MeasureTarget& target) {
  const qcow2::Header& header = image.qcow2()->header();
  if (!header.bitmaps) return 0;
  uint64_t bytes = 0;
  uint64_t directory = 0;
  for (const qcow2::Bitmap& b : TRY(qcow2::read_bitmap_directory(image.file(), header, *header.bitmaps))) {
    if (b.in_use) continue;
    const uint64_t bits = div_round_up(header.size, b.granularity);
    const uint64_t clusters = div_round_up(div_round_up(bits, 8), target.cluster_size);
    bytes += clusters * target.cluster_size + align_up(clusters * 8, target.cluster_size);
    directory += align_up(24 + b.name.size(), 8);
  }
  return bytes + align_up(directory, target.cluster_size);
}

}  // namespace

Result<Measurement> measure_size(uint64_t size, const MeasureTarget& target) {
  if (target.format == Format::kLuks) {  // no holes
    const uint64_t whole = target.luks_header_bytes + size;
    return Measurement{whole, whole, std::nullopt};
  }
  if (target.format == Format::kRaw) {
    const uint64_t whole = align_up(size, kSectorSize);
    return Measurement{whole, whole, std::nullopt};
  }
  TRY(check_size(size, target));
  const uint64_t all = allocated_file(size, target) + align_up(target.luks_header_bytes, target.cluster_size);
  const uint64_t data = align_up(size, target.cluster_size);
  return Measurement{target.preallocates_data ? all : all - data, all, std::nullopt};
}

Result<Measurement> measure_image(const OpenImage& image, std::optional<size_t> snapshot, const MeasureTarget& target) {
  const uint64_t size = TRY(image.device()->size());
  Measurement result = TRY(measure_size(size, target));
  if (target.format != Format::kQcow2) return result;
  if (target.has_backing) {
    result.required = result.fully_allocated;  // nobody knows how much of it the backing file will hold
  } else if (!target.preallocates_data) {
    result.required += snapshot ? TRY(snapshot_bytes(image, *snapshot, target)) : TRY(data_bytes(image, target));
  }
  const bool source_has = image.qcow2() != nullptr && image.qcow2()->header().version >= 3;
  if (source_has && !image.has_disk_filter() && target.version >= 3) result.bitmaps = TRY(bitmap_bytes(image, target));
  return result;
}

}  // namespace varve::image
