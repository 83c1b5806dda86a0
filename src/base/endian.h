// Big-endian integers as they stand on disk: byte arrays of alignment 1, so that a struct of them is the on-disk
// structure itself and can be copied to and from a buffer.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace varve {

template <typename T>
class BigEndian {
  static_assert(std::is_unsigned_v<T>);

 public:
  BigEndian() = default;
  BigEndian(T value) { *this = value; }  // NOLINT(google-explicit-constructor)
  BigEndian& operator=(T value) {
    value = swap(value);
    std::memcpy(bytes_, &value, sizeof value);
    return *this;
  }
  operator T() const {  // NOLINT(google-explicit-constructor)
    T value;
    std::memcpy(&value, bytes_, sizeof value);
    return swap(value);
  }

 private:
  static T swap(T v) {
    if constexpr (sizeof(T) == 2) return __builtin_bswap16(v);
    if constexpr (sizeof(T) == 4) return __builtin_bswap32(v);
    if constexpr (sizeof(T) == 8) return __builtin_bswap64(v);
    return v;
  }
  unsigned char bytes_[sizeof(T)] = {};
};

using be16 = BigEndian<uint16_t>;
using be32 = BigEndian<uint32_t>;
using be64 = BigEndian<uint64_t>;

template <typename T>
T load_be(const void* p) {
  BigEndian<T> v;
  std::memcpy(static_cast<void*>(&v), p, sizeof v);
  return v;
}

template <typename T>
void store_be(void* p, T value) {
  const BigEndian<T> v(value);
  std::memcpy(p, &v, sizeof v);
}

}  // namespace varve
