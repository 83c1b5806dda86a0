// A mutation that knows that images are made of big-endian words, most of which are places of clusters: without it, a
// fuzzer spends its life on offsets that are refused at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>

#include "base/endian.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace varve::fuzz {

inline size_t mutate_image(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size < 112 || random() % 3 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const uint32_t cluster_bits = std::clamp(load_be<uint32_t>(data + 20), 9u, 16u);
  const uint64_t clusters = (size >> cluster_bits) + 1;
  for (unsigned changes = 1 + random() % 3; changes != 0; --changes) {
    const bool in_header = random() % 4 == 0;
    const uint64_t limit = in_header ? 112 : size;
    const uint64_t cluster = random() % clusters << cluster_bits;
    const uint64_t copied = uint64_t{random() % 2} << 63;
    uint64_t value = 0;
    switch (random() % 6) {
      case 0:
        value = cluster | copied;
        break;
      case 1:
        value = cluster | copied | 1;
        break;
      case 2:  // compressed, somewhere
        value = uint64_t{1} << 62 | uint64_t{random() % 4} << (62 - (cluster_bits - 8)) | random() % size;
        break;
      case 3:
        value = random() % 8;
        break;
      case 4:
        value = ~uint64_t{0} >> random() % 64;
        break;
      default:
        value = uint64_t{1} << random() % 64;
        break;
    }
    if (in_header && random() % 2 == 0)
      store_be<uint32_t>(data + random() % (limit / 4) * 4, static_cast<uint32_t>(value));
    else if (random() % 4 == 0)  // a refcount
      store_be<uint16_t>(data + random() % (limit / 2) * 2, static_cast<uint16_t>(value));
    else
      store_be<uint64_t>(data + random() % (limit / 8) * 8, value);
  }
  return size;
}

}  // namespace varve::fuzz
