#include "crypto/hash.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "crypto/anti_forensic.h"

namespace varve::crypto {
namespace {

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(b));
  return text;
}

std::string derive(HashAlgorithm hash, std::string_view passphrase, std::string_view salt, uint32_t iterations,
                   size_t bytes) {
  SecretBytes key(bytes);
  EXPECT_TRUE(pbkdf2(hash, SecretBytes(passphrase).bytes(), SecretBytes(salt).bytes(), iterations, key.bytes()));
  return hex(key.bytes());
}

TEST(Hash, NamesAreQemus) {
  for (const char* name : {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}) {
    const auto hash = hash_named(name);
    ASSERT_TRUE(hash) << name;
    EXPECT_STREQ(name_of(*hash), name);
  }
  EXPECT_FALSE(hash_named("SHA256"));
  EXPECT_FALSE(hash_named(""));
}

TEST(Hash, DigestOfTwoPiecesIsThatOfTheWhole) {
  auto hasher = Hasher::make(HashAlgorithm::kSha256);
  ASSERT_TRUE(hasher);
  SecretBytes digest(32);
  for (int repeat = 0; repeat < 2; ++repeat) {
    ASSERT_TRUE(hasher->digest(SecretBytes("a").bytes(), SecretBytes("bc").bytes(), digest.bytes()));
    EXPECT_EQ(hex(digest.bytes()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");  // FIPS 180-4
  }
}

TEST(Hash, EveryAlgorithmIsThereAndHasItsLength) {
  for (const auto hash : {HashAlgorithm::kMd5, HashAlgorithm::kSha1, HashAlgorithm::kSha224, HashAlgorithm::kSha256,
                          HashAlgorithm::kSha384, HashAlgorithm::kSha512, HashAlgorithm::kRipemd160}) {
    auto hasher = Hasher::make(hash);
    ASSERT_TRUE(hasher) << name_of(hash);
    SecretBytes digest(digest_bytes(hash) + 1);
    ASSERT_TRUE(hasher->digest({}, {}, digest.bytes().first(digest_bytes(hash))));
    EXPECT_EQ(digest.bytes().back(), std::byte{0}) << name_of(hash);
  }
}

TEST(Pbkdf2, KnownVectors) {
  // RFC 6070.
  EXPECT_EQ(derive(HashAlgorithm::kSha1, "password", "salt", 1, 20), "0c60c80f961f0e71f3a9b524af6012062fe037a6");
  EXPECT_EQ(derive(HashAlgorithm::kSha1, "password", "salt", 4096, 20), "4b007901b765489abead49d926f721d065a429c1");
  EXPECT_EQ(derive(HashAlgorithm::kSha1, std::string_view("pass\0word", 9), std::string_view("sa\0lt", 5), 4096, 16),
            "56fa6aa75548099dcc37d7f03425e0c3");
  // RFC 7914, section 11.
  EXPECT_EQ(derive(HashAlgorithm::kSha256, "passwd", "salt", 1, 64),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
            "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783");
}

TEST(Pbkdf2, AnEmptyPassphraseIsOne) {
  EXPECT_NE(derive(HashAlgorithm::kSha256, "", "salt", 1, 32), derive(HashAlgorithm::kSha256, "x", "salt", 1, 32));
}

TEST(Pbkdf2, RefusesCountsThatTheLibraryCannotDo) {
  SecretBytes key(16);
  EXPECT_FALSE(pbkdf2(HashAlgorithm::kSha256, {}, {}, 0, key.bytes()));
  EXPECT_FALSE(pbkdf2(HashAlgorithm::kSha256, {}, {}, 0x80000000, key.bytes()));
}

TEST(AntiForensic, MergeGivesBackWhatWasSplit) {
  for (const auto hash : {HashAlgorithm::kMd5, HashAlgorithm::kSha1, HashAlgorithm::kSha512}) {
    for (const size_t size : {size_t{16}, size_t{24}, size_t{48}, size_t{64}}) {
      SecretBytes key(size);
      ASSERT_TRUE(random_bytes(key.bytes()));
      SecretBytes material(size * 40);
      ASSERT_TRUE(split_key(hash, key.bytes(), 40, material.bytes()));
      SecretBytes merged(size);
      ASSERT_TRUE(merge_key(hash, material.bytes(), 40, merged.bytes()));
      EXPECT_EQ(hex(merged.bytes()), hex(key.bytes()));
      material.bytes()[size * 7] ^= std::byte{1};
      ASSERT_TRUE(merge_key(hash, material.bytes(), 40, merged.bytes()));
      EXPECT_NE(hex(merged.bytes()), hex(key.bytes())) << "a lost part of the material loses the key";
    }
  }
}

}  // namespace
}  // namespace varve::crypto
