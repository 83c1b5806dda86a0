#include "crypto/sector_cipher.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace varve::crypto {
namespace {

using Bytes = std::vector<std::byte>;

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(b));
  return text;
}

Bytes counting(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

Bytes unhex(std::string_view text) {
  Bytes bytes;
  for (size_t i = 0; i < text.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoul(std::string(text.substr(i, 2)), nullptr, 16)));
  return bytes;
}

// IEEE 1619, annex B, vectors 4 and 10: a data unit of 512 counting bytes.
TEST(SectorCipher, KnownVectorsOfXts) {
  const auto check = [](CipherAlgorithm algorithm, std::string_view key, uint64_t sector, std::string_view begin) {
    auto cipher = SectorCipher::make({algorithm, CipherMode::kXts, IvGenerator::kPlain64, std::nullopt}, unhex(key));
    ASSERT_TRUE(cipher);
    Bytes plain;
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Bytes half = counting(256);
      plain.insert(plain.end(), half.begin(), half.end());
    }
    Bytes encrypted(512);
    ASSERT_TRUE((*cipher)->encrypt(sector, plain, encrypted));
    EXPECT_EQ(hex(encrypted).substr(0, 64), begin);
    ASSERT_TRUE((*cipher)->decrypt(sector, encrypted, encrypted));
    EXPECT_EQ(encrypted, plain);
  };
  check(CipherAlgorithm::kAes128, "2718281828459045235360287471352631415926535897932384626433832795", 0,
        "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c");
  check(CipherAlgorithm::kAes256,
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592",
        0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b");
}

class Modes : public testing::TestWithParam<CipherSpec> {};

TEST_P(Modes, EverySectorComesBackWhereverItIsReadFrom) {
  const Bytes key = counting(GetParam().key_bytes());
  auto cipher = SectorCipher::make(GetParam(), key);
  ASSERT_TRUE(cipher) << cipher.error().message;
  const Bytes plain = counting(size_t{512} * 300);  // more than a batch
  const uint64_t first = 0xfffffff0;                // over the border of 32 bits
  Bytes encrypted(plain.size());
  ASSERT_TRUE((*cipher)->encrypt(first, plain, encrypted));
  EXPECT_NE(encrypted, plain);
  for (const size_t at : {size_t{0}, size_t{1}, size_t{127}, size_t{128}, size_t{299}}) {
    Bytes sector(512);
    ASSERT_TRUE((*cipher)->decrypt(first + at, std::span(encrypted).subspan(at * 512, 512), sector));
    EXPECT_TRUE(std::equal(sector.begin(), sector.end(), plain.begin() + static_cast<std::ptrdiff_t>(at * 512))) << at;
  }
  ASSERT_TRUE((*cipher)->decrypt(first, encrypted, encrypted));
  EXPECT_EQ(encrypted, plain);
}

TEST_P(Modes, TheNumberOfTheSectorMatters) {
  auto cipher = SectorCipher::make(GetParam(), counting(GetParam().key_bytes()));
  ASSERT_TRUE(cipher);
  const Bytes plain(512);
  const auto encrypt = [&](uint64_t sector) {
    Bytes out(512);
    EXPECT_TRUE((*cipher)->encrypt(sector, plain, out));
    return out;
  };
  if (GetParam().mode == CipherMode::kEcb) {
    EXPECT_EQ(encrypt(1), encrypt(2));
  } else {
    EXPECT_NE(encrypt(1), encrypt(2));
    // "plain" has 32 bits of it.
    EXPECT_EQ(encrypt(1) == encrypt(1 + (uint64_t{1} << 32)), GetParam().iv_generator == IvGenerator::kPlain);
  }
}

TEST_P(Modes, ThreadsDoNotDisturbEachOther) {
  auto cipher = SectorCipher::make(GetParam(), counting(GetParam().key_bytes()));
  ASSERT_TRUE(cipher);
  const Bytes plain = counting(size_t{512} * 8);
  Bytes expected(plain.size());
  ASSERT_TRUE((*cipher)->encrypt(5, plain, expected));
  std::vector<std::jthread> threads;
  std::vector<Bytes> results(4, Bytes(plain.size()));
  for (size_t t = 0; t < results.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int repeat = 0; repeat < 50; ++repeat) (void)(*cipher)->encrypt(5, plain, results[t]);
    });
  }
  threads.clear();
  for (const Bytes& result : results) EXPECT_EQ(result, expected);
}

INSTANTIATE_TEST_SUITE_P(
    SectorCipher, Modes,
    testing::Values(CipherSpec{CipherAlgorithm::kAes128, CipherMode::kXts, IvGenerator::kPlain64, {}},
                    CipherSpec{CipherAlgorithm::kAes192, CipherMode::kXts, IvGenerator::kPlain64, {}},
                    CipherSpec{CipherAlgorithm::kAes256, CipherMode::kXts, IvGenerator::kPlain, {}},
                    CipherSpec{CipherAlgorithm::kAes256, CipherMode::kXts, IvGenerator::kEssiv, HashAlgorithm::kSha256},
                    CipherSpec{CipherAlgorithm::kAes128, CipherMode::kCbc, IvGenerator::kPlain, {}},
                    CipherSpec{CipherAlgorithm::kAes192, CipherMode::kCbc, IvGenerator::kPlain64, {}},
                    CipherSpec{CipherAlgorithm::kAes128, CipherMode::kCbc, IvGenerator::kEssiv, HashAlgorithm::kSha256},
                    CipherSpec{CipherAlgorithm::kAes256, CipherMode::kCbc, IvGenerator::kEssiv, HashAlgorithm::kMd5},
                    CipherSpec{CipherAlgorithm::kAes256, CipherMode::kCtr, IvGenerator::kPlain64, {}},
                    CipherSpec{CipherAlgorithm::kAes256, CipherMode::kEcb, IvGenerator::kPlain64, {}}),
    [](const auto& parameter) {
      const CipherSpec& s = parameter.param;
      std::string name = fmt::format("{}_{}_{}", name_of(s.algorithm), name_of(s.mode), name_of(s.iv_generator));
      std::ranges::replace(name, '-', '_');
      return name;
    });

TEST(SectorCipher, RefusesWhatTheLibraryDoesNotHave) {
  const CipherSpec spec{CipherAlgorithm::kTwofish256, CipherMode::kXts, IvGenerator::kPlain64, {}};
  const auto cipher = SectorCipher::make(spec, counting(64));
  ASSERT_FALSE(cipher);
  EXPECT_EQ(cipher.error().kind, ErrorKind::kUnsupported);
  EXPECT_EQ(cipher.error().message, "Algorithm 'twofish-256' not supported");
}

TEST(CipherSpec, EssivNeedsADigestThatIsAKey) {
  CipherSpec spec{CipherAlgorithm::kAes256, CipherMode::kCbc, IvGenerator::kEssiv, HashAlgorithm::kSha1};
  EXPECT_EQ(check_cipher_spec(spec).error().message, "No AES cipher with key size 20 available");
  spec.iv_hash = std::nullopt;
  EXPECT_EQ(check_cipher_spec(spec).error().message, "Missing IV generator hash specification");
  spec.iv_hash = HashAlgorithm::kSha256;
  EXPECT_TRUE(check_cipher_spec(spec));
}

}  // namespace
}  // namespace varve::crypto
