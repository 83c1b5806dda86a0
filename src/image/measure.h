// How large a file a disk would take, before it is written: what `image measure` says. The figures are an upper bound,
// by qemu-img's own reckoning, so that a volume made by them is of the size that its users know.
#pragma once

#include <cstdint>
#include <optional>

#include "image/open.h"

namespace varve::image {

struct MeasureTarget {
  Format format = Format::kRaw;
  uint64_t cluster_size = 65536;  // from here on: qcow2 only
  uint32_t refcount_bits = 16;
  uint32_t version = 3;
  bool extended_l2 = false;
  bool has_backing = false;
  bool preallocates_data = false;  // falloc, full
  uint64_t luks_header_bytes = 0;  // of the format luks, too
};

struct Measurement {
  uint64_t required = 0;            // for what the disk holds now
  uint64_t fully_allocated = 0;     // once every byte was written
  std::optional<uint64_t> bitmaps;  // what its bitmaps would add, where both sides can have some
};

// kInvalidArgument, in QEMU's words, for a disk that the target can't hold.
Result<Measurement> measure_size(uint64_t size, const MeasureTarget& target);
// The disk of an image, or of snapshot `snapshot` of it.
Result<Measurement> measure_image(const OpenImage& image, std::optional<size_t> snapshot, const MeasureTarget& target);

}  // namespace varve::image
