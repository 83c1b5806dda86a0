#include "transfer/checksum.h"

#include <gtest/gtest.h>

#include <random>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

// Runs of zeroes and of other bytes, with lengths that fit no block.
std::vector<std::byte> some_bytes(unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes;
  while (bytes.size() < 3'000'000) {
    const size_t length = random() % 300'000;
    const bool zero = random() % 2 == 0;
    for (size_t i = 0; i < length; ++i) bytes.push_back(zero ? std::byte{} : static_cast<std::byte>(random()));
  }
  return bytes;
}

std::string in_pieces(ChecksumKind kind, std::span<const std::byte> bytes, unsigned seed) {
  std::mt19937 random(seed);
  auto checksum = Checksum::begin(kind);
  EXPECT_TRUE(checksum);
  while (!bytes.empty()) {
    // A hole as one, where there is one.
    size_t zeroes = 0;
    while (zeroes < bytes.size() && bytes[zeroes] == std::byte{}) ++zeroes;
    if (zeroes > 4096 && random() % 2 == 0) {
      checksum->add_zeroes(zeroes);
      bytes = bytes.subspan(zeroes);
      continue;
    }
    const size_t length = std::min<size_t>(bytes.size(), 1 + random() % 200'000);
    checksum->add(bytes.first(length));
    bytes = bytes.subspan(length);
  }
  return checksum->finish().value_or("");
}

TEST(Checksum, IsWhatSha256sumPrints) {
  REQUIRES_PROGRAM("sha256sum");
  const std::vector<std::byte> bytes = some_bytes(1);
  const test::TempDir directory;
  const std::string path =
      directory.write("file", std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  EXPECT_EQ(in_pieces(ChecksumKind::kSha256, bytes, 1), test::run_ok({"sha256sum", path}).substr(0, 64));
}

TEST(Checksum, DoesNotDependOnThePiecesNorOnWhatAHoleIs) {
  for (const ChecksumKind kind : {ChecksumKind::kSha256, ChecksumKind::kWithoutZeroes}) {
    for (unsigned seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(seed);
      const std::vector<std::byte> bytes = some_bytes(seed);
      EXPECT_EQ(in_pieces(kind, bytes, seed), in_pieces(kind, bytes, seed + 1000));
    }
  }
}

TEST(Checksum, OfOtherBytesIsAnother) {
  std::vector<std::byte> bytes = some_bytes(1);
  const std::string whole = in_pieces(ChecksumKind::kWithoutZeroes, bytes, 1);
  for (const size_t at : {size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
    bytes[at] ^= std::byte{1};
    EXPECT_NE(in_pieces(ChecksumKind::kWithoutZeroes, bytes, 1), whole) << at;
    bytes[at] ^= std::byte{1};
  }
  bytes.push_back(std::byte{});
  EXPECT_NE(in_pieces(ChecksumKind::kWithoutZeroes, bytes, 1), whole);
  // Zeroes that are somewhere else.
  std::vector<std::byte> moved(size_t{1} << 20);
  moved[0] = std::byte{1};
  const std::string before = in_pieces(ChecksumKind::kWithoutZeroes, moved, 1);
  std::swap(moved[0], moved[size_t{512} << 10]);
  EXPECT_NE(in_pieces(ChecksumKind::kWithoutZeroes, moved, 1), before);
}

}  // namespace
}  // namespace varve
