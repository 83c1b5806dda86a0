// Vectors for what is read from files and written to them. The kernel copies to and from addresses at a multiple of a
// cache line faster than to others, by a third for large pieces (docs/performance.md); malloc's are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace varve {

inline constexpr size_t kBufferAlignment = 64;

// Takes a little more from malloc than is asked for, and begins at the first border: an aligned allocation of the C
// library's would leave gaps that the next one of the same size does not fit into.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}  // NOLINT(google-explicit-constructor): allocators convert

  T* allocate(size_t count) {
    auto* memory = static_cast<std::byte*>(::operator new(count * sizeof(T) + kBufferAlignment));
    const size_t distance = kBufferAlignment - reinterpret_cast<uintptr_t>(memory) % kBufferAlignment;
    memory += distance;
    memory[-1] = static_cast<std::byte>(distance);
    return reinterpret_cast<T*>(memory);
  }
  void deallocate(T* items, size_t) {
    auto* memory = reinterpret_cast<std::byte*>(items);
    ::operator delete(memory - static_cast<size_t>(memory[-1]));
  }
  template <typename Other>
  bool operator==(const AlignedAllocator<Other>&) const {
    return true;
  }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace varve
