// How a range of bytes falls into a disk's sectors: what a disk writes whole or not at all.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/checked.h"

namespace varve {

constexpr uint64_t kDiskSector = 512;

struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};

// Sectors that [offset, offset+length) touches.
constexpr uint64_t sectors_of(uint64_t offset, uint64_t length) {
  if (length == 0) return 0;
  return (offset + length - 1) / kDiskSector - offset / kDiskSector + 1;
}

// The part of [offset, offset+length) in `count` of its sectors, from its `first` on (counted from 0, within it).
constexpr ByteRange sector_part(uint64_t offset, uint64_t length, uint64_t first, uint64_t count) {
  const uint64_t start = align_down(offset, kDiskSector) + first * kDiskSector;
  const uint64_t from = std::max(start, offset);
  const uint64_t to = std::min(start + count * kDiskSector, offset + length);
  return {from, to > from ? to - from : 0};
}

}  // namespace varve
