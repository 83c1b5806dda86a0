#include "qcow2/refcount_array.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::qcow2 {
namespace {

constexpr size_t kPage = 4096;

std::byte* reserve(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  ::madvise(p, bytes, MADV_HUGEPAGE);  // a hint; fewer faults on the whole-table passes
  return static_cast<std::byte*>(p);
}

// Widths of whole bytes: runs of big-endian T, changed in one loop without an exit, which the compiler can make wide. A
// value that may not be changed — 0 is not in use, and going up the largest has no successor — is found on the way, and
// then everything is taken back and done again up to there.
template <typename T, int kDelta>
uint64_t add_run(std::byte* data, uint64_t first, uint64_t count) {
  auto* values = reinterpret_cast<BigEndian<T>*>(data) + first;
  const auto forbidden = [](T old) { return kDelta > 0 ? static_cast<T>(old + 1) <= 1 : old == 0; };
  bool hit = false;
  for (uint64_t i = 0; i < count; ++i) {
    const T old = values[i];
    hit |= forbidden(old);
    values[i] = static_cast<T>(old + static_cast<T>(kDelta));
  }
  if (!hit) return count;
  for (uint64_t i = 0; i < count; ++i) values[i] = static_cast<T>(values[i] - static_cast<T>(kDelta));
  uint64_t usable = 0;
  for (; !forbidden(values[usable]); ++usable) values[usable] = static_cast<T>(values[usable] + static_cast<T>(kDelta));
  return usable;
}

}  // namespace

RefcountArray::RefcountArray(uint32_t order, size_t bytes)
    : order_(order), data_(reserve(align_up(bytes, kPage))), size_(bytes) {}

RefcountArray::RefcountArray(RefcountArray&& other) noexcept
    : order_(other.order_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

RefcountArray& RefcountArray::operator=(RefcountArray&& other) noexcept {
  std::swap(order_, other.order_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

RefcountArray::~RefcountArray() {
  if (data_ != nullptr) ::munmap(data_, align_up(size_, kPage));
}

Result<void> RefcountArray::grow(size_t bytes) {
  if (bytes <= size_) return {};
  if (data_ == nullptr) {
    try {
      data_ = reserve(align_up(bytes, kPage));
    } catch (const std::bad_alloc&) {
      return system_error(ENOMEM, "reserving memory for refcounts");
    }
  } else {
    void* p = ::mremap(data_, align_up(size_, kPage), align_up(bytes, kPage), MREMAP_MAYMOVE);
    if (p == MAP_FAILED) return system_error(errno, "reserving memory for refcounts");
    data_ = static_cast<std::byte*>(p);
  }
  size_ = bytes;
  return {};
}

uint64_t RefcountArray::get(uint64_t cluster) const {
  if (cluster >= clusters()) return 0;
  switch (order_) {
    case 3:
      return std::to_integer<uint64_t>(data_[cluster]);
    case 4:
      return load_be<uint16_t>(data_ + cluster * 2);
    case 5:
      return load_be<uint32_t>(data_ + cluster * 4);
    case 6:
      return load_be<uint64_t>(data_ + cluster * 8);
    default: {  // several per byte, the first in the least significant bits
      const uint32_t bits = 1u << order_;
      const uint64_t bit = cluster << order_;
      return std::to_integer<uint64_t>(data_[bit / 8]) >> (bit % 8) & ((1u << bits) - 1);
    }
  }
}

void RefcountArray::set(uint64_t cluster, uint64_t value) {
  CHECK(cluster < clusters() && value <= max_value());
  switch (order_) {
    case 3:
      data_[cluster] = static_cast<std::byte>(value);
      return;
    case 4:
      return store_be(data_ + cluster * 2, static_cast<uint16_t>(value));
    case 5:
      return store_be(data_ + cluster * 4, static_cast<uint32_t>(value));
    case 6:
      return store_be(data_ + cluster * 8, value);
    default: {
      const uint32_t bits = 1u << order_;
      const uint64_t bit = cluster << order_;
      const auto mask = static_cast<std::byte>(((1u << bits) - 1) << (bit % 8));
      std::byte& b = data_[bit / 8];
      b = (b & ~mask) | static_cast<std::byte>(value << (bit % 8));
      return;
    }
  }
}

uint64_t RefcountArray::increment(uint64_t first, uint64_t count) {
  CHECK(first + count <= clusters());
  switch (order_) {
    case 3:
      return add_run<uint8_t, 1>(data_, first, count);
    case 4:
      return add_run<uint16_t, 1>(data_, first, count);
    case 5:
      return add_run<uint32_t, 1>(data_, first, count);
    case 6:
      return add_run<uint64_t, 1>(data_, first, count);
    default:
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t value = get(first + i);
        if (value == 0 || value == max_value()) return i;
        set(first + i, value + 1);
      }
      return count;
  }
}

uint64_t RefcountArray::decrement(uint64_t first, uint64_t count) {
  CHECK(first + count <= clusters());
  switch (order_) {
    case 3:
      return add_run<uint8_t, -1>(data_, first, count);
    case 4:
      return add_run<uint16_t, -1>(data_, first, count);
    case 5:
      return add_run<uint32_t, -1>(data_, first, count);
    case 6:
      return add_run<uint64_t, -1>(data_, first, count);
    default:
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t value = get(first + i);
        if (value == 0) return i;
        set(first + i, value - 1);
      }
      return count;
  }
}

bool RefcountArray::all_equal(uint64_t first, uint64_t count, uint64_t value) const {
  CHECK(first + count <= clusters());
  if (order_ == 4) {  // the usual width, without an exit in the loop, so that it can be made wide
    const auto* values = reinterpret_cast<const be16*>(data_) + first;
    bool same = true;
    for (uint64_t i = 0; i < count; ++i) same &= values[i] == value;
    return same;
  }
  for (uint64_t i = 0; i < count; ++i)
    if (get(first + i) != value) return false;
  return true;
}

}  // namespace varve::qcow2
