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

RefcountArray::Memory RefcountArray::allocate(uint64_t bytes) {
  // Pages that nobody touches cost nothing, however large a sparse file says it is. Large pages halve the time of a
  // pass over many clusters.
  const uint64_t length = std::max<uint64_t>(bytes, 1);
  void* memory = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  (void)::madvise(memory, length, MADV_HUGEPAGE);
  return Memory(static_cast<std::byte*>(memory), Unmap{length});
}

void RefcountArray::Unmap::operator()(std::byte* p) const {
  ::munmap(p, length);
}

uint64_t RefcountArray::get(uint64_t cluster) const {
  if (cluster >= clusters_) return 0;
  return with_order(order_, [&](auto order) { return PackedRefcount<order>::get(bytes_.get(), cluster); });
}

void RefcountArray::set(uint64_t cluster, uint64_t value) {
  CHECK(cluster < clusters_);
  with_order(order_, [&](auto order) { PackedRefcount<order>::set(bytes_.get(), cluster, value); });
}

uint64_t RefcountArray::first_counted(uint64_t first, uint64_t end) const {
  while (first < end && get(first) == 0) {
    const bool whole = first % per_word() == 0 && end - first >= per_word() && first + per_word() <= clusters_;
    first += whole && is_zero_word(first) ? per_word() : 1;
  }
  return first;
}

uint64_t RefcountArray::last_counted(uint64_t first, uint64_t end) const {
  for (uint64_t i = end; i > first;) {
    const bool whole = i % per_word() == 0 && i - first >= per_word() && i <= clusters_;
    if (whole && is_zero_word(i - per_word())) {
      i -= per_word();
    } else if (get(--i) != 0) {
      return i;
    }
  }
  return end;
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
  bytes_.reset();  // first, so that there are never two
  bytes_ = allocate(capacity_);
}

}  // namespace varve::check
