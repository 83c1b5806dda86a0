#include "io/memory_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <string_view>

namespace varve {
namespace {

Error out_of_range(const char* doing, uint64_t length, uint64_t offset, const std::string& name, uint64_t size) {
  Error e = make_error(
      ErrorKind::kInvalidArgument,
      fmt::format("cannot {} {} bytes at offset {} of '{}': it ends at {}", doing, length, offset, name, size));
  e.path = name;
  e.offset = offset;
  return e;
}

}  // namespace

Result<void> MemoryDevice::read_at(uint64_t offset, std::span<std::byte> buffer) {
  const std::lock_guard guard(mutex_);
  if (offset > size_ || buffer.size() > size_ - offset) {
    return out_of_range("read", buffer.size(), offset, name_, size_);
  }
  while (!buffer.empty()) {
    const uint64_t within = offset % kPage;
    const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), kPage - within));
    const auto found = pages_.find(offset / kPage);
    if (found == pages_.end()) {
      std::memset(buffer.data(), 0, n);
    } else {
      std::memcpy(buffer.data(), found->second.page->bytes.data() + within, n);
    }
    buffer = buffer.subspan(n);
    offset += n;
  }
  return {};
}

std::byte* MemoryDevice::for_writing(Slot& slot) {
  if (!slot.page) {
    slot.page = std::make_shared<Page>();
  } else if (slot.shared) {
    auto own = std::make_shared<Page>();
    own->bytes = slot.page->bytes;
    slot = {std::move(own), false};
  }
  slot.page->hash.store(0, std::memory_order_relaxed);
  return slot.page->bytes.data();
}

Result<void> MemoryDevice::write_at(uint64_t offset, std::span<const std::byte> data) {
  const std::lock_guard guard(mutex_);
  if (data.size() > std::numeric_limits<uint64_t>::max() - offset) {
    return out_of_range("write", data.size(), offset, name_, size_);
  }
  if (!data.empty()) size_ = std::max(size_, offset + data.size());
  while (!data.empty()) {
    const uint64_t within = offset % kPage;
    const size_t n = static_cast<size_t>(std::min<uint64_t>(data.size(), kPage - within));
    std::memcpy(for_writing(pages_[offset / kPage]) + within, data.data(), n);
    data = data.subspan(n);
    offset += n;
  }
  return {};
}

// The range lies within the device (or within its last page, when the device shrinks).
void MemoryDevice::zero(uint64_t offset, uint64_t length, bool keep_pages) {
  const uint64_t end = offset + length;
  if (keep_pages) {
    while (offset < end) {
      const uint64_t n = std::min(end - offset, kPage - offset % kPage);
      std::memset(for_writing(pages_[offset / kPage]) + offset % kPage, 0, n);
      offset += n;
    }
    return;
  }
  auto it = pages_.lower_bound(offset / kPage);
  while (it != pages_.end() && it->first * kPage < end) {
    const uint64_t start = it->first * kPage;
    const uint64_t from = std::max(start, offset);
    const uint64_t to = std::min(start + kPage, end);
    if (from == start && (to == start + kPage || to >= size_)) {
      it = pages_.erase(it);
    } else {
      std::memset(for_writing(it->second) + (from - start), 0, to - from);
      ++it;
    }
  }
}

Result<void> MemoryDevice::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  const std::lock_guard guard(mutex_);
  if (offset < size_) zero(offset, std::min(length, size_ - offset), mode == ZeroMode::kKeepAllocated);
  return {};
}

Result<void> MemoryDevice::discard(uint64_t offset, uint64_t length) {
  return write_zeroes(offset, length, ZeroMode::kMayUnmap);
}

Result<uint64_t> MemoryDevice::size() {
  const std::lock_guard guard(mutex_);
  return size_;
}

// What is cut off is gone: after growing again it reads as zeroes.
Result<void> MemoryDevice::resize(uint64_t new_size) {
  const std::lock_guard guard(mutex_);
  if (new_size < size_) zero(new_size, size_ - new_size, false);
  size_ = new_size;
  return {};
}

Result<std::vector<Extent>> MemoryDevice::extents(uint64_t offset, uint64_t length) {
  const std::lock_guard guard(mutex_);
  std::vector<Extent> result;
  if (offset >= size_) return result;
  const uint64_t end = offset + std::min(length, size_ - offset);
  const auto append = [&result](uint64_t from, uint64_t to, ExtentKind kind) {
    if (from == to) return;
    if (!result.empty() && result.back().kind == kind) {
      result.back().length += to - from;
    } else {
      result.push_back({from, to - from, kind});
    }
  };
  uint64_t position = offset;
  for (auto it = pages_.lower_bound(offset / kPage); it != pages_.end() && it->first * kPage < end; ++it) {
    const uint64_t from = std::max(it->first * kPage, position);
    const uint64_t to = std::min(it->first * kPage + kPage, end);
    append(position, from, ExtentKind::kZero);
    append(from, to, ExtentKind::kData);
    position = to;
  }
  append(position, end, ExtentKind::kZero);
  return result;
}

std::unique_ptr<MemoryDevice> MemoryDevice::clone() const {
  const std::lock_guard guard(mutex_);
  auto copy = std::make_unique<MemoryDevice>(name_, size_);
  for (auto& [index, slot] : pages_) {
    slot.shared = true;
    copy->pages_.emplace_hint(copy->pages_.end(), index, slot);
  }
  return copy;
}

uint64_t MemoryDevice::hash() const {
  const std::lock_guard guard(mutex_);
  const auto hash_of = [](const Page& page) {
    const std::string_view bytes(reinterpret_cast<const char*>(page.bytes.data()), kPage);
    return static_cast<uint64_t>(std::hash<std::string_view>{}(bytes)) | 1;  // never 0, which means that it isn't known
  };
  static const uint64_t zeroes = hash_of(Page{});
  uint64_t result = size_;
  for (const auto& [index, slot] : pages_) {
    uint64_t page = slot.page->hash.load(std::memory_order_relaxed);
    if (page == 0) {
      page = hash_of(*slot.page);
      slot.page->hash.store(page, std::memory_order_relaxed);
    }
    if (page == zeroes) continue;  // as if it weren't there
    // The finaliser of MurmurHash3, over one number after the other.
    for (const uint64_t number : {index, page}) {
      result = (result ^ number) * 0xff51afd7ed558ccdull;
      result = (result ^ result >> 33) * 0xc4ceb9fe1a85ec53ull;
      result ^= result >> 33;
    }
  }
  return result;
}

}  // namespace varve
