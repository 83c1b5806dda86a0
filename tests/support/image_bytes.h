// Bytes of an image under a test's control: look at all of them, change some, find out whether anybody else did.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/endian.h"
#include "io/memory_device.h"

namespace varve::test {

inline std::vector<std::byte> contents(BlockDevice& device) {
  std::vector<std::byte> out(*device.size());
  const auto r = device.read_at(0, out);
  EXPECT_TRUE(r) << r.error().message;
  return out;
}

inline void poke_bytes(BlockDevice& device, uint64_t offset, std::string_view bytes) {
  const auto r = device.write_at(offset, std::as_bytes(std::span(bytes)));
  ASSERT_TRUE(r) << r.error().message;
}

// A big-endian number, as the format has them.
template <typename T>
void poke(BlockDevice& device, uint64_t offset, T value) {
  const BigEndian<T> bytes(value);
  const auto r = device.write_at(offset, std::as_bytes(std::span(&bytes, 1)));
  ASSERT_TRUE(r) << r.error().message;
}

template <typename T>
T peek(BlockDevice& device, uint64_t offset) {
  BigEndian<T> bytes;
  const auto r = device.read_at(offset, std::as_writable_bytes(std::span(&bytes, 1)));
  EXPECT_TRUE(r) << r.error().message;
  return bytes;
}

}  // namespace varve::test
