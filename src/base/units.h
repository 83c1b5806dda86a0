// Sizes and times as people write and read them, spelled as QEMU's tools spell them so that neither users nor scripts
// need to learn a second way.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace varve {

// A number of bytes: decimal with an optional fraction ("1.5k") or hexadecimal ("0x200"), and one of the suffixes b, k,
// M, G, T, P, E (powers of 1024, upper or lower case). A fraction needs a suffix above b, and is rounded to whole
// bytes, halves upwards. kInvalidArgument otherwise, with sys_errno EINVAL for what is not a size and ERANGE for one
// above 2^63-1, so that a caller who must use other words than ours can tell them apart.
Result<uint64_t> parse_size(std::string_view text);

// Three significant digits and a unit: "0 B", "999 B", "0.977 KiB", "1.5 GiB". The next unit begins at 1000 of the one
// before.
std::string format_size(uint64_t bytes);

// Seconds since 1970 in the local time zone: "2026-01-31 23:59:59".
std::string format_local_time(int64_t seconds);

// A virtual machine's clock, nanoseconds since it started: "00:01:02.345"; hours take as many digits as they need.
std::string format_vm_clock(uint64_t nanoseconds);

}  // namespace varve
