// Arithmetic on numbers that came from a disk or a user: the result, or nothing on overflow.
#pragma once

#include <cstdint>
#include <optional>

namespace varve {

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

// `unit` is not 0. Neither overflows for value <= 2^63 and unit <= 2^32.
constexpr uint64_t div_round_up(uint64_t value, uint64_t unit) { return value / unit + (value % unit != 0); }
constexpr uint64_t align_up(uint64_t value, uint64_t unit) { return div_round_up(value, unit) * unit; }
constexpr uint64_t align_down(uint64_t value, uint64_t unit) { return value / unit * unit; }

}  // namespace varve
