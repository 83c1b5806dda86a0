#include "base/units.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstddef>
#include <ctime>
#include <limits>
#include <optional>

namespace varve {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr uint64_t kMaxSize = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
constexpr std::string_view kSuffixes = "bkmgtpe";
// Decimal digits of a fraction that are looked at: 10^19 is the largest power of ten in 64 bits.
constexpr size_t kFractionDigits = 19;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

char to_lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::optional<unsigned> hex_digit(char c) {
  c = to_lower(c);
  if (is_digit(c)) return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  return std::nullopt;
}

Error not_a_size(std::string_view text) {
  Error e = make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is not a size", text));
  e.sys_errno = EINVAL;
  e.notes.push_back("write a number of bytes, or a number and one of the suffixes k, M, G, T, P and E");
  return e;
}

Error too_large(std::string_view text) {
  Error e = make_error(ErrorKind::kInvalidArgument,
                       fmt::format("'{}' is too large a size: there are at most {} bytes", text, kMaxSize));
  e.sys_errno = ERANGE;
  return e;
}

// A fraction as numerator / denominator, the latter a power of ten.
struct Fraction {
  uint64_t numerator = 0;
  uint64_t denominator = 1;
};

// The digits from `at` on, of which at least one is needed; `at` moves behind them. A value that is too large stays at
// a number larger than every size.
std::optional<Wide> take_digits(std::string_view text, size_t& at, unsigned base) {
  const size_t start = at;
  Wide value = 0;
  for (; at < text.size(); ++at) {
    const std::optional<unsigned> digit = hex_digit(text[at]);
    if (!digit || *digit >= base) break;
    if (value <= kMaxSize) value = value * base + *digit;
  }
  if (at == start) return std::nullopt;
  return value;
}

Fraction take_fraction(std::string_view text, size_t& at) {
  Fraction fraction;
  for (size_t digits = 0; at < text.size() && is_digit(text[at]); ++at, ++digits) {
    if (digits >= kFractionDigits) continue;
    fraction.numerator = fraction.numerator * 10 + static_cast<uint64_t>(text[at] - '0');
    fraction.denominator *= 10;
  }
  return fraction;
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  size_t at = text.find_first_not_of(" \t\n\v\f\r");
  if (at == std::string_view::npos) return not_a_size(text);
  if (text[at] == '+') ++at;
  const bool hex = text.size() - at > 2 && text[at] == '0' && to_lower(text[at + 1]) == 'x';
  if (hex) at += 2;
  const std::optional<Wide> whole = take_digits(text, at, hex ? 16 : 10);
  if (!whole) return not_a_size(text);

  Fraction fraction;
  if (!hex && at < text.size() && text[at] == '.') {
    ++at;
    fraction = take_fraction(text, at);
  }
  unsigned shift = 0;
  if (at < text.size()) {
    const size_t suffix = kSuffixes.find(to_lower(text[at]));
    if (suffix == std::string_view::npos) return not_a_size(text);
    shift = static_cast<unsigned>(10 * suffix);
    ++at;
  }
  if (at != text.size()) return not_a_size(text);
  if (shift == 0 && fraction.numerator != 0) return not_a_size(text);  // half a byte

  if (*whole > kMaxSize) return too_large(text);
  const Wide unit = Wide{1} << shift;
  const Wide rest = (fraction.numerator * unit + fraction.denominator / 2) / fraction.denominator;
  const Wide size = *whole * unit + rest;
  if (size > kMaxSize) return too_large(text);
  return static_cast<uint64_t>(size);
}

std::string format_size(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  uint64_t unit_bytes = 1;
  while (unit + 1 < std::size(kUnits) && bytes / unit_bytes >= 1000) {
    unit_bytes *= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", static_cast<double>(bytes) / static_cast<double>(unit_bytes), kUnits[unit]);
}

std::string format_local_time(int64_t seconds) {
  const time_t time = seconds;
  struct tm fields = {};
  char text[64];
  if (::localtime_r(&time, &fields) == nullptr) return std::to_string(seconds);  // a year that does not fit
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &fields));
}

std::string format_vm_clock(uint64_t nanoseconds) {
  const uint64_t milliseconds = nanoseconds / 1'000'000;
  const uint64_t seconds = milliseconds / 1000;
  return fmt::format("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, milliseconds % 1000);
}

}  // namespace varve
