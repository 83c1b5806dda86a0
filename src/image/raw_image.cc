#include "image/raw_image.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"

namespace varve::image {

Result<uint64_t> RawImage::size() {
  return align_up(TRY(file_->size()), kSectorSize);
}

Result<uint64_t> RawImage::inside(uint64_t offset, uint64_t length) {
  const uint64_t file_size = TRY(file_->size());
  return offset >= file_size ? 0 : std::min(length, file_size - offset);
}

Result<void> RawImage::read_at(uint64_t offset, std::span<std::byte> buffer) {
  const uint64_t end = align_up(TRY(file_->size()), kSectorSize);
  if (offset > end || buffer.size() > end - offset) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("{}: bytes {} to {} lie beyond the end of the disk",
                                                               name(), offset, offset + buffer.size()));
  }
  const uint64_t held = TRY(inside(offset, buffer.size()));
  std::ranges::fill(buffer.subspan(held), std::byte{0});
  if (held == 0) return {};
  return file_->read_at(offset, buffer.first(held));
}

Result<void> RawImage::write_at(uint64_t offset, std::span<const std::byte> data) {
  return file_->write_at(offset, data);  // the sector that the size was rounded up by may be written, too
}

Result<void> RawImage::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  const uint64_t held = TRY(inside(offset, length));  // what is beyond reads as zeroes anyhow
  if (held == 0) return {};
  return file_->write_zeroes(offset, held, mode);
}

Result<void> RawImage::discard(uint64_t offset, uint64_t length) {
  const uint64_t held = TRY(inside(offset, length));
  if (held == 0) return {};
  return file_->discard(offset, held);
}

Result<std::vector<Extent>> RawImage::extents(uint64_t offset, uint64_t length) {
  std::vector<Extent> result = TRY(file_->extents(offset, length));
  const uint64_t file_size = TRY(file_->size());
  const uint64_t begin = std::max(offset, file_size);
  const uint64_t end = std::min(offset + length, align_up(file_size, kSectorSize));
  if (begin >= end) return result;
  if (!result.empty() && (tail_ == Tail::kAsBefore || result.back().kind == ExtentKind::kZero)) {
    result.back().length += end - begin;
  } else {
    result.push_back({begin, end - begin, ExtentKind::kZero});
  }
  return result;
}

}  // namespace varve::image
