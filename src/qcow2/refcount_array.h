// Refcounts of consecutive clusters as one flat array in the on-disk format: because block k of the refcount structure
// holds the counts of clusters [k*n, (k+1)*n), all blocks laid end to end are simply one array over the whole file
// (qcow2 specification, "Host cluster management"). Blocks that do not exist are zero pages that were never touched:
// the array lies in a reserved mapping, so memory grows with the blocks that exist, not with the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace varve::qcow2 {

class RefcountArray {
 public:
  // `order`: log2 of the width in bits, 0 to 6. `bytes` is the capacity.
  RefcountArray(uint32_t order, size_t bytes);
  RefcountArray(RefcountArray&& other) noexcept;
  RefcountArray& operator=(RefcountArray&& other) noexcept;
  ~RefcountArray();

  Result<void> grow(size_t bytes);
  std::span<std::byte> bytes() { return {data_, size_}; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  uint64_t clusters() const { return size_ * 8 >> order_; }
  uint64_t max_value() const { return order_ == 6 ? ~uint64_t{0} : (uint64_t{1} << (1u << order_)) - 1; }

  uint64_t get(uint64_t cluster) const;
  void set(uint64_t cluster, uint64_t value);
  // Adds 1 to (subtracts 1 from) `count` entries, which are all in use. Returns how many were changed: less than
  // `count` when the next one is 0, or would overflow.
  uint64_t increment(uint64_t first, uint64_t count);
  uint64_t decrement(uint64_t first, uint64_t count);
  bool all_equal(uint64_t first, uint64_t count, uint64_t value) const;

 private:
  uint32_t order_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace varve::qcow2
