// One refcount for every cluster of an image, packed as a refcount block packs them (big-endian, 1 to 64 bits each), so
// that refcounts as they are on disk and references as they were counted compare as bytes, and a refcount block is a
// slice. This is all the memory that a check needs for each cluster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

#include "base/endian.h"

namespace varve::check {

template <unsigned kOrder>
struct PackedRefcount {
  static constexpr uint64_t kMax = ~uint64_t{0} >> (64 - (1u << kOrder));

  static uint64_t get(const std::byte* bytes, uint64_t i) {
    if constexpr (kOrder < 3) {
      constexpr unsigned kPerByte = 8 >> kOrder;
      return std::to_integer<uint64_t>(bytes[i / kPerByte]) >> (i % kPerByte << kOrder) & kMax;
    } else if constexpr (kOrder == 3) {
      return std::to_integer<uint64_t>(bytes[i]);
    } else {
      using Word = std::conditional_t<kOrder == 4, uint16_t, std::conditional_t<kOrder == 5, uint32_t, uint64_t>>;
      return load_be<Word>(bytes + i * sizeof(Word));
    }
  }
  static void set(std::byte* bytes, uint64_t i, uint64_t value) {
    if constexpr (kOrder < 3) {
      constexpr unsigned kPerByte = 8 >> kOrder;
      const uint64_t shift = i % kPerByte << kOrder;
      std::byte& b = bytes[i / kPerByte];
      b = (b & ~std::byte(kMax << shift)) | std::byte(value << shift);
    } else if constexpr (kOrder == 3) {
      bytes[i] = std::byte(value);
    } else {
      using Word = std::conditional_t<kOrder == 4, uint16_t, std::conditional_t<kOrder == 5, uint32_t, uint64_t>>;
      store_be(bytes + i * sizeof(Word), static_cast<Word>(value));
    }
  }
};

// Calls `f` with the order as a compile-time constant, for loops over many clusters.
template <typename F>
decltype(auto) with_order(unsigned order, F&& f) {
  switch (order) {
    case 0:
      return f(std::integral_constant<unsigned, 0>{});
    case 1:
      return f(std::integral_constant<unsigned, 1>{});
    case 2:
      return f(std::integral_constant<unsigned, 2>{});
    case 3:
      return f(std::integral_constant<unsigned, 3>{});
    case 4:
      return f(std::integral_constant<unsigned, 4>{});
    case 5:
      return f(std::integral_constant<unsigned, 5>{});
    default:
      return f(std::integral_constant<unsigned, 6>{});
  }
}

class RefcountArray {
 public:
  // All zero. `block_bytes`: the memory is a whole number of refcount blocks.
  RefcountArray(unsigned order, uint64_t block_bytes, uint64_t clusters);

  unsigned order() const { return order_; }
  uint64_t clusters() const { return clusters_; }
  uint64_t max() const { return ~uint64_t{0} >> (64 - (1u << order_)); }
  uint64_t get(uint64_t cluster) const;  // 0 behind the end
  void set(uint64_t cluster, uint64_t value);
  // The first and the last cluster of [first, end) that are counted; `end` where none is. Clusters that nothing refers
  // to, of which a sparse file may have very many, are passed over word by word.
  uint64_t first_counted(uint64_t first, uint64_t end) const;
  uint64_t last_counted(uint64_t first, uint64_t end) const;
  void grow(uint64_t clusters);  // new ones are zero
  void clear();
  // Whole refcount blocks.
  std::span<std::byte> bytes() { return {bytes_.get(), capacity_}; }
  std::span<const std::byte> bytes() const { return {bytes_.get(), capacity_}; }
  std::span<const std::byte> block(uint64_t index) const { return bytes().subspan(index * block_bytes_, block_bytes_); }
  uint64_t blocks() const { return capacity_ / block_bytes_; }

 private:
  uint64_t per_word() const { return uint64_t{64} >> order_; }
  bool is_zero_word(uint64_t cluster) const { return load_be<uint64_t>(&bytes_.get()[(cluster << order_) / 8]) == 0; }
  struct Unmap {
    uint64_t length = 0;
    void operator()(std::byte* p) const;
  };
  using Memory = std::unique_ptr<std::byte, Unmap>;
  static Memory allocate(uint64_t bytes);
  uint64_t bytes_for(uint64_t clusters) const;

  unsigned order_;
  uint64_t block_bytes_;
  uint64_t clusters_;
  uint64_t capacity_;
  Memory bytes_;
};

}  // namespace varve::check
