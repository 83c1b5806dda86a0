#include "base/units.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <ctime>

namespace varve {
namespace {

// What qemu-img 7.2 makes of `create -f raw FILE SIZE` and `measure --size SIZE`, which round up to 512 bytes.
TEST(ParseSize, TakesWhatQemuImgTakes) {
  const std::pair<const char*, uint64_t> table[] = {
      {"0", 0},
      {"1", 1},
      {"512", 512},
      {"1k", 1024},
      {"1K", 1024},
      {"1.5k", 1536},
      {"0x10", 16},
      {"0X1F", 31},
      {"0x10k", 16384},
      {"0xb", 11},
      {"0x5e", 94},
      {"0x10b", 267},
      {"1b", 1},
      {"1B", 1},
      {"10G", 10737418240},
      {"10g", 10737418240},
      {"1t", 1099511627776},
      {"1P", 1125899906842624},
      {"7E", 8070450532247928832},
      {"7.9E", 9108079886394091110},
      {"9223372036854775807", INT64_MAX},
      {"0x7fffffffffffffff", INT64_MAX},
      {"+5", 5},
      {"+0x10", 16},
      {" 5", 5},
      {"1.k", 1024},
      {"0.0", 0},
      {"1.0", 1},
      {"1.0b", 1},
      {"010", 10},
      {"00001k", 1024},
      {"0.1G", 107374182},
      {"0.3k", 307},
      {"0.7T", 769658139443},
      {"0.0001k", 0},
      {"0.00048828125k", 1},  // half a byte is rounded up
      {"0.00048828124k", 0},
      {"1.00000000001G", 1073741824},
      {"0.123456789123456789123456789E", 142335987070146022},
  };
  for (const auto& [text, bytes] : table) {
    const auto r = parse_size(text);
    ASSERT_TRUE(r) << text;
    EXPECT_EQ(*r, bytes) << text;
  }
}

TEST(ParseSize, RefusesWhatIsNotASize) {
  for (const char* text : {"",   " ",     "+",      "-1",   "-0",   "k",     ".5k",  "5 ",   "5kk",   "5kB",   "5KiB",
                           "5z", "0.5",   "1.5",    "1.5b", "1,5k", "1e3",   "1e1k", "1e+1", "1E-1",  "2e2",   "1.5e3",
                           "0x", "0x1.8", "0x1.8k", "inf",  "nan",  "-0x10", "0xg",  "+ 5",  "1.5K+", "1..5k", "++5"}) {
    const auto r = parse_size(text);
    ASSERT_FALSE(r) << text;
    EXPECT_EQ(r.error().kind, ErrorKind::kInvalidArgument) << text;
    EXPECT_EQ(r.error().sys_errno, EINVAL) << text;
  }
  EXPECT_EQ(parse_size("5kk").error().message, "'5kk' is not a size");
}

TEST(ParseSize, RefusesWhatIsTooLarge) {
  for (const char* text :
       {"8E", "16E", "9223372036854775808", "18446744073709551615", "99999999999999999999", "0x10000000000000000",
        "340282366920938463463374607431768211456", "340282366920938463463374607431768211457E",
        "17179869183.9999999999G", "8589934591.9999999999G"}) {
    const auto r = parse_size(text);
    ASSERT_FALSE(r) << text;
    EXPECT_EQ(r.error().sys_errno, ERANGE) << text;
  }
  EXPECT_EQ(parse_size("8E").error().message, "'8E' is too large a size: there are at most 9223372036854775807 bytes");
}

// The VM SIZE column of `qemu-img snapshot -l` 7.2.
TEST(FormatSize, PrintsAsQemuImg) {
  const std::pair<uint64_t, const char*> table[] = {
      {0, "0 B"},
      {1, "1 B"},
      {9, "9 B"},
      {10, "10 B"},
      {99, "99 B"},
      {100, "100 B"},
      {511, "511 B"},
      {512, "512 B"},
      {999, "999 B"},
      {1000, "0.977 KiB"},
      {1001, "0.978 KiB"},
      {1023, "0.999 KiB"},
      {1024, "1 KiB"},
      {1025, "1 KiB"},
      {1536, "1.5 KiB"},
      {10240, "10 KiB"},
      {12345, "12.1 KiB"},
      {102400, "100 KiB"},
      {123456, "121 KiB"},
      {1022976, "999 KiB"},
      {1023487, "999 KiB"},
      {1023488, "1e+03 KiB"},
      {1023999, "1e+03 KiB"},
      {1024000, "0.977 MiB"},
      {1047552, "0.999 MiB"},
      {1048064, "1 MiB"},
      {1048575, "1 MiB"},
      {1048576, "1 MiB"},
      {1234567, "1.18 MiB"},
      {12345678, "11.8 MiB"},
      {12928590, "12.3 MiB"},
      {105906176, "101 MiB"},
      {123456789, "118 MiB"},
      {128974848, "123 MiB"},
      {1048051711, "999 MiB"},
      {1048051712, "1e+03 MiB"},
      {1073741823, "1 GiB"},
      {1073741824, "1 GiB"},
      {1234567890, "1.15 GiB"},
      {1610612736, "1.5 GiB"},
      {10737418240, "10 GiB"},
      {123456789012, "115 GiB"},
      {1073741824000, "0.977 TiB"},
      {1099511627776, "1 TiB"},
      {1234567890123, "1.12 TiB"},
      {1125899906842624, "1 PiB"},
      {5764607523034234880, "5 EiB"},
      {9223372036854775807, "8 EiB"},
      {UINT64_MAX, "16 EiB"},
  };
  for (const auto& [bytes, text] : table) EXPECT_EQ(format_size(bytes), text) << bytes;
}

TEST(FormatLocalTime, FollowsTheTimeZone) {
  const char* before = ::getenv("TZ");
  const std::string saved = before != nullptr ? before : "";
  ::setenv("TZ", "UTC", 1);
  ::tzset();
  EXPECT_EQ(format_local_time(0), "1970-01-01 00:00:00");
  EXPECT_EQ(format_local_time(1700000000), "2023-11-14 22:13:20");
  EXPECT_EQ(format_local_time(4294967295), "2106-02-07 06:28:15");
  ::setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
  ::tzset();
  EXPECT_EQ(format_local_time(1700000000), "2023-11-14 23:13:20");
  EXPECT_EQ(format_local_time(1720000000), "2024-07-03 11:46:40");
  before != nullptr ? ::setenv("TZ", saved.c_str(), 1) : ::unsetenv("TZ");
  ::tzset();
}

TEST(FormatVmClock, PrintsAsQemuImg) {
  EXPECT_EQ(format_vm_clock(0), "00:00:00.000");
  EXPECT_EQ(format_vm_clock(999999), "00:00:00.000");
  EXPECT_EQ(format_vm_clock(1234567890), "00:00:01.234");
  EXPECT_EQ(format_vm_clock(59999999999), "00:00:59.999");
  EXPECT_EQ(format_vm_clock(3600000000000), "01:00:00.000");
  EXPECT_EQ(format_vm_clock(359940000000000), "99:59:00.000");
  EXPECT_EQ(format_vm_clock(360000000000000), "100:00:00.000");
  EXPECT_EQ(format_vm_clock(UINT64_MAX), "5124095:34:33.709");
}

}  // namespace
}  // namespace varve
