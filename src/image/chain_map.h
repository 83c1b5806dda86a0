// What a guest's disk is made of, through a whole backing chain: which layer a stretch comes from, whether it reads as
// zeroes, and where in that layer's file it lies. This is what `image map` prints, and what lets `image compare` and
// `image measure` see equal or empty stretches without reading them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "image/open.h"

namespace varve::image {

struct ChainExtent {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t depth = 0;    // the layer it is from; where none has it, the last one that was asked
  bool present = false;  // some layer holds it
  bool zero = false;     // known to read as zeroes
  bool data = false;     // held as data
  bool compressed = false;
  std::optional<uint64_t>
      host_offset;  // in the file of layer `depth`; for compressed data, as in PlacedExtent; none where it is encrypted
};

// Whether devices over the topmost format (DebugFilters::on_disk) are asked, and may fail, or what is below them.
enum class TopFilters : uint8_t { kAsked, kSkipped };

class ChainMap {
 public:
  // The image outlives the map.
  static Result<ChainMap> open(const OpenImage& image, TopFilters top = TopFilters::kAsked);

  // Covers [offset, offset+length), clipped to the disk's size. Neighbours are apart where the file, or the layer
  // above, keeps them apart.
  Result<std::vector<ChainExtent>> extents(uint64_t offset, uint64_t length);
  uint64_t size() const { return size_; }

 private:
  struct Layer {
    BlockDevice* device;
    std::vector<DebugDevice*> filters;  // over `qcow2`
    qcow2::Image* qcow2;                // null for other formats
    bool has_places;                    // what a guest sees lies in the file as it is
    uint64_t size;
    // The file holds much less than its clusters: tables were preallocated, and its holes tell what is data.
    bool holes_tell;
  };
  Result<void> append(size_t depth, uint64_t offset, uint64_t length, std::vector<ChainExtent>& result);
  Result<void> append_data(size_t depth, const ChainExtent& extent, std::vector<ChainExtent>& result);

  std::vector<Layer> layers_;
  uint64_t size_ = 0;
};

}  // namespace varve::image
