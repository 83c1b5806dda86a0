#include "qcow2/incompressible.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace varve::qcow2 {
namespace {

constexpr size_t kBlock = 16384;  // bytes that share a histogram: deflate makes its codes for stretches of this order
constexpr unsigned kHashBits = 14;

// The sum of the squares of the frequencies is 1/256 for bytes that are spread evenly, and n/256 of that more where
// chance spreads n of them. 3% above it, the entropy is at least 7.95 bits a byte: what a code could save of 64 KiB
// would be less than 400 bytes, and its table is about as long.
bool is_spread_evenly(std::span<const std::byte> block) {
  std::array<std::array<uint32_t, 256>, 2> counts = {};  // two: neighbours that are alike do not wait for each other
  size_t at = 0;
  for (; at + 2 <= block.size(); at += 2) {
    ++counts[0][static_cast<uint8_t>(block[at])];
    ++counts[1][static_cast<uint8_t>(block[at + 1])];
  }
  if (at < block.size()) ++counts[0][static_cast<uint8_t>(block[at])];
  uint64_t squares = 0;
  for (size_t value = 0; value < 256; ++value) {
    const uint64_t count = uint64_t{counts[0][value]} + counts[1][value];
    squares += count * count;
  }
  const uint64_t n = block.size();
  return squares * 256 * 100 <= n * n * 103;
}

// Counts sequences of four bytes that were there before, wherever a table of the last places still knows of them.
bool has_repetitions(std::span<const std::byte> bytes) {
  if (bytes.size() < 4) return false;
  const size_t few = bytes.size() / 8192;  // each saves three bytes at the most
  std::array<uint32_t, size_t{1} << kHashBits> last = {};
  size_t found = 0;
  for (size_t at = 0; at + 4 <= bytes.size(); ++at) {
    uint32_t word = 0;
    std::memcpy(&word, &bytes[at], 4);
    uint32_t& place = last[(word * 2654435761u) >> (32 - kHashBits)];  // Knuth's multiplicative hash
    uint32_t before = 0;
    std::memcpy(&before, &bytes[place], 4);
    if (before == word && place != at && ++found > few) return true;
    place = static_cast<uint32_t>(at);
  }
  return false;
}

}  // namespace

bool is_incompressible(std::span<const std::byte> cluster) {
  // In blocks that are too small for chance to be even, nothing can be told.
  if (cluster.size() < kBlock) return false;
  for (size_t at = 0; at < cluster.size(); at += kBlock)
    if (!is_spread_evenly(cluster.subspan(at, std::min(kBlock, cluster.size() - at)))) return false;
  return !has_repetitions(cluster);
}

}  // namespace varve::qcow2
