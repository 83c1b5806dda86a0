#include "image/new_space.h"

#include <algorithm>

namespace varve::image {

namespace {

constexpr uint64_t kBufferBytes = uint64_t{1} << 20;

Result<void> write_zero_bytes(FileDevice& file, uint64_t from, uint64_t end) {
  const std::vector<std::byte> zeroes(std::min(kBufferBytes, end - from));
  for (uint64_t at = from; at < end; at += zeroes.size())
    TRY(file.write_at(at, std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), end - at))));
  return {};
}

}  // namespace

Result<void> fill_holes(FileDevice& file, uint64_t from, uint64_t end, NewSpace space) {
  if (space == NewSpace::kSparse || space == NewSpace::kMetadata || from >= end) return {};
  for (const Extent& extent : TRY(file.extents(from, end - from))) {
    if (extent.kind == ExtentKind::kData) continue;
    if (space == NewSpace::kReserved || file.is_rehearsal()) {  // takes the same space, and less time
      TRY(file.write_zeroes(extent.offset, extent.length, ZeroMode::kKeepAllocated));
    } else {
      TRY(write_zero_bytes(file, extent.offset, extent.offset + extent.length));
    }
  }
  return {};
}

}  // namespace varve::image
