// Reading where a file may end early. Programs cut image files at the last byte that matters, or at the last that is
// not zero: what a table or a data cluster has behind the end of the file reads as zeroes, as QEMU reads it. (Tables
// that lie behind the end as a whole are refused where they are named.)
#pragma once

#include <algorithm>
#include <cstring>

#include "io/block_device.h"

namespace varve::qcow2 {

inline Result<void> read_padded(BlockDevice& device, uint64_t offset, std::span<std::byte> buffer) {
  if (buffer.empty()) return {};
  const uint64_t size = TRY(device.size());
  const uint64_t there = offset < size ? std::min<uint64_t>(buffer.size(), size - offset) : 0;
  if (there != 0) TRY(device.read_at(offset, buffer.first(there)));
  if (there != buffer.size()) std::memset(buffer.data() + there, 0, buffer.size() - there);
  return {};
}

}  // namespace varve::qcow2
