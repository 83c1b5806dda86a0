#include "io/rehearsal_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/zero_bytes.h"

namespace varve {

Result<std::unique_ptr<RehearsalDevice>> RehearsalDevice::over(std::unique_ptr<BlockDevice> original) {
  const uint64_t size = TRY(original->size());
  return std::unique_ptr<RehearsalDevice>(new RehearsalDevice(std::move(original), size));
}

void RehearsalDevice::cut_at(uint64_t offset) {
  auto it = pieces_.upper_bound(offset);
  if (it == pieces_.begin()) return;
  --it;
  auto& [begin, piece] = *it;
  if (begin == offset || piece.end <= offset) return;
  Piece rest{.end = piece.end, .kind = piece.kind, .bytes = {}};
  if (piece.kind == Kind::kBytes) {
    rest.bytes.assign(piece.bytes.begin() + static_cast<ptrdiff_t>(offset - begin), piece.bytes.end());
    piece.bytes.resize(offset - begin);
  }
  piece.end = offset;
  pieces_.emplace(offset, std::move(rest));
}

void RehearsalDevice::clear(uint64_t begin, uint64_t end) {
  cut_at(begin);
  cut_at(end);
  pieces_.erase(pieces_.lower_bound(begin), pieces_.lower_bound(end));
}

void RehearsalDevice::put(uint64_t begin, Piece piece) {
  clear(begin, piece.end);
  pieces_.emplace(begin, std::move(piece));
}

Result<std::vector<Extent>> RehearsalDevice::original_extents(uint64_t begin, uint64_t end) const {
  std::vector<Extent> result;
  const uint64_t there = std::clamp(original_size_, begin, end);
  if (begin < there) result = TRY(original_->extents(begin, there - begin));
  append_extent(result, {there, end - there, ExtentKind::kZero});
  return result;
}

Result<std::vector<Extent>> RehearsalDevice::extents_now(uint64_t begin, uint64_t end) const {
  std::vector<Extent> result;
  auto it = pieces_.upper_bound(begin);
  if (it != pieces_.begin() && std::prev(it)->second.end > begin) --it;
  for (uint64_t at = begin; at < end;) {
    const uint64_t next = it == pieces_.end() ? end : std::clamp(it->first, at, end);
    if (at < next) {
      for (const Extent& extent : TRY(original_extents(at, next))) append_extent(result, extent);
      at = next;
      continue;
    }
    const uint64_t piece_end = std::min(it->second.end, end);
    append_extent(result, {at, piece_end - at, it->second.kind == Kind::kHole ? ExtentKind::kZero : ExtentKind::kData});
    at = piece_end;
    ++it;
  }
  return result;
}

Result<uint64_t> RehearsalDevice::occupied(uint64_t begin, uint64_t end) const {
  uint64_t bytes = 0;
  for (const Extent& extent : TRY(extents_now(begin, end)))
    if (extent.kind == ExtentKind::kData) bytes += extent.length;
  return bytes;
}

Result<void> RehearsalDevice::read_at(uint64_t offset, std::span<std::byte> buffer) {
  const std::lock_guard lock(mutex_);
  if (offset > size_ || buffer.size() > size_ - offset)
    return make_error(
        ErrorKind::kInvalidArgument,
        fmt::format("cannot read {} bytes at offset {} of '{}': it ends at {}", buffer.size(), offset, name(), size_));
  const uint64_t there = offset >= original_size_ ? 0 : std::min<uint64_t>(buffer.size(), original_size_ - offset);
  if (there != 0) TRY(original_->read_at(offset, buffer.first(there)));
  std::fill(buffer.begin() + static_cast<ptrdiff_t>(there), buffer.end(), std::byte{0});
  const uint64_t end = offset + buffer.size();
  auto it = pieces_.upper_bound(offset);
  if (it != pieces_.begin()) --it;
  for (; it != pieces_.end() && it->first < end; ++it) {
    const auto& [begin, piece] = *it;
    const uint64_t from = std::max(begin, offset);
    const uint64_t to = std::min(piece.end, end);
    if (from >= to) continue;
    if (piece.kind == Kind::kBytes)
      std::memcpy(&buffer[from - offset], &piece.bytes[from - begin], to - from);
    else
      std::memset(&buffer[from - offset], 0, to - from);
  }
  return {};
}

Result<void> RehearsalDevice::write_at(uint64_t offset, std::span<const std::byte> data) {
  if (data.empty()) return {};
  const std::lock_guard lock(mutex_);
  const uint64_t end = offset + data.size();
  new_bytes_ += static_cast<int64_t>(data.size() - TRY(occupied(offset, end)));
  most_new_bytes_ = std::max(most_new_bytes_, new_bytes_);
  Piece piece{.end = end, .kind = Kind::kZeroes, .bytes = {}};
  if (!all_zero(data)) {
    piece.kind = Kind::kBytes;
    piece.bytes.assign(data.begin(), data.end());
  }
  put(offset, std::move(piece));
  size_ = std::max(size_, end);
  return {};
}

Result<void> RehearsalDevice::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  const std::lock_guard lock(mutex_);
  if (offset >= size_ || length == 0) return {};
  const uint64_t end = offset + std::min(length, size_ - offset);
  const uint64_t before = TRY(occupied(offset, end));
  if (mode == ZeroMode::kKeepAllocated) {
    new_bytes_ += static_cast<int64_t>(end - offset - before);
    most_new_bytes_ = std::max(most_new_bytes_, new_bytes_);
  } else {
    new_bytes_ -= static_cast<int64_t>(before);
  }
  put(offset, {.end = end, .kind = mode == ZeroMode::kKeepAllocated ? Kind::kZeroes : Kind::kHole, .bytes = {}});
  return {};
}

Result<void> RehearsalDevice::discard(uint64_t offset, uint64_t length) {
  return write_zeroes(offset, length, ZeroMode::kMayUnmap);
}

Result<uint64_t> RehearsalDevice::size() {
  const std::lock_guard lock(mutex_);
  return size_;
}

Result<void> RehearsalDevice::resize(uint64_t new_size) {
  const std::lock_guard lock(mutex_);
  if (new_size < size_) {
    new_bytes_ -= static_cast<int64_t>(TRY(occupied(new_size, size_)));
    clear(new_size, size_);
    // What the original holds there is gone, should the file grow again.
    if (new_size < original_size_) put(new_size, {.end = original_size_, .kind = Kind::kHole, .bytes = {}});
  }
  size_ = new_size;
  return {};
}

Result<std::vector<Extent>> RehearsalDevice::extents(uint64_t offset, uint64_t length) {
  const std::lock_guard lock(mutex_);
  if (offset >= size_) return std::vector<Extent>{};
  return extents_now(offset, offset + std::min(length, size_ - offset));
}

RehearsedChanges RehearsalDevice::changes() const {
  const std::lock_guard lock(mutex_);
  RehearsedChanges result{.size_before = original_size_,
                          .size_after = size_,
                          .written_bytes = 0,
                          .most_new_bytes = static_cast<uint64_t>(most_new_bytes_)};
  for (const auto& [begin, piece] : pieces_)
    if (piece.kind != Kind::kHole) result.written_bytes += piece.end - begin;
  return result;
}

}  // namespace varve
