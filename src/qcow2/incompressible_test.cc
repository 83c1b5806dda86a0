#include "qcow2/incompressible.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace varve::qcow2 {
namespace {

std::vector<std::byte> random_bytes(size_t size, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(engine() >> 24);
  return bytes;
}

// What deflate makes of it, as compressed clusters have it.
size_t deflated_size(std::vector<std::byte>& bytes) {
  std::vector<std::byte> output(bytes.size() * 2);
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(output.data());
  stream.avail_out = static_cast<uInt>(output.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  deflateEnd(&stream);
  return stream.total_out;
}

TEST(Incompressible, RandomBytesAreOfEverySize) {
  for (const size_t size : {size_t{16384}, size_t{65536}, size_t{2} << 20})
    for (uint32_t seed = 0; seed < 20; ++seed)
      EXPECT_TRUE(is_incompressible(random_bytes(size, seed))) << size << " bytes, seed " << seed;
}

TEST(Incompressible, TextZeroesAndFewValuesAreNot) {
  std::vector<std::byte> bytes(65536);
  EXPECT_FALSE(is_incompressible(bytes));
  bytes = random_bytes(65536, 1);
  for (std::byte& b : bytes) b &= std::byte{0x7f};
  EXPECT_FALSE(is_incompressible(bytes)) << "seven bits of eight";
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_FALSE(is_incompressible(bytes)) << "spread evenly, and always the same again";
  EXPECT_FALSE(is_incompressible(random_bytes(4096, 1))) << "too little to tell";
}

TEST(Incompressible, RepeatedRandomBytesAreNot) {
  for (const size_t distance : {size_t{64}, size_t{1000}, size_t{4096}, size_t{20000}}) {
    std::vector<std::byte> bytes = random_bytes(65536, 7);
    for (size_t i = distance; i < bytes.size(); ++i) bytes[i] = bytes[i - distance];
    EXPECT_FALSE(is_incompressible(bytes)) << distance;
  }
  std::vector<std::byte> bytes = random_bytes(65536, 8);
  std::memcpy(&bytes[40000], &bytes[37000], 1000);
  EXPECT_FALSE(is_incompressible(bytes)) << "a thousand bytes twice";
}

// What is passed over would have saved next to nothing.
TEST(Incompressible, LosesNoSpaceWorthSpeakingOf) {
  std::mt19937 engine(3);
  size_t passed_over = 0;
  for (int i = 0; i < 200; ++i) {
    std::vector<std::byte> bytes = random_bytes(65536, static_cast<uint32_t>(i));
    const uint64_t zeroes = engine() % 1000;  // and a few of another kind among them
    for (uint64_t k = 0; k < zeroes; ++k) bytes[engine() % bytes.size()] = std::byte{0};
    if (!is_incompressible(bytes)) continue;
    ++passed_over;
    EXPECT_GT(deflated_size(bytes), 65536u - 256) << "with " << zeroes << " zeroes";
  }
  EXPECT_GT(passed_over, 20u);
}

}  // namespace
}  // namespace varve::qcow2
