#include "check/refcount_array.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "base/checked.h"
#include "base/result.h"

namespace varve::check {

RefcountArray::RefcountArray(unsigned order, uint64_t block_bytes, uint64_t clusters)
    : order_(order),
      block_bytes_(block_bytes),
      clusters_(clusters),
      capacity_(bytes_for(clusters)),
      bytes_(allocate(capacity_)) {}

uint64_t RefcountArray::bytes_for(uint64_t clusters) const {
  return align_up(div_round_up(clusters << order_, 8), block_bytes_);
}

std::unique_ptr<std::byte, RefcountArray::Free> RefcountArray::allocate(uint64_t bytes) {
  // calloc: pages that nobody touches cost nothing. Large pages halve the time of a pass over random clusters.
  constexpr uint64_t kLargePage = uint64_t{2} << 20;
  void* memory = nullptr;
  if (bytes >= 2 * kLargePage) {
    memory = std::aligned_alloc(kLargePage, align_up(bytes, kLargePage));
    if (memory != nullptr) {
      (void)::madvise(memory, align_up(bytes, kLargePage), MADV_HUGEPAGE);
      std::memset(memory, 0, bytes);
    }
  } else {
    memory = std::calloc(std::max<uint64_t>(bytes, 1), 1);
  }
  if (memory == nullptr) throw std::bad_alloc();
  return std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(memory));
}

uint64_t RefcountArray::get(uint64_t cluster) const {
  if (cluster >= clusters_) return 0;
  return with_order(order_, [&](auto order) { return PackedRefcount<order>::get(bytes_.get(), cluster); });
}

void RefcountArray::set(uint64_t cluster, uint64_t value) {
  CHECK(cluster < clusters_);
  with_order(order_, [&](auto order) { PackedRefcount<order>::set(bytes_.get(), cluster, value); });
}

void RefcountArray::grow(uint64_t clusters) {
  if (clusters <= clusters_) return;
  const uint64_t needed = bytes_for(clusters);
  if (needed > capacity_) {
    auto larger = allocate(needed);
    std::memcpy(larger.get(), bytes_.get(), capacity_);
    bytes_ = std::move(larger);
    capacity_ = needed;
  }
  clusters_ = clusters;
}

void RefcountArray::clear() {
  std::memset(bytes_.get(), 0, capacity_);
}

}  // namespace varve::check
