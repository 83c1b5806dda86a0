// Whether bytes are all zero: holes are found in data this way.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

namespace varve {

inline bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace varve
