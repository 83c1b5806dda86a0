#include "crypto/wrapped_secret.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

namespace varve::crypto {
namespace {

std::vector<std::byte> bytes_of(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

// NIST SP 800-38A, F.2.6, "CBC-AES256.Decrypt", the first block's key, vector and ciphertext.
const std::vector<std::byte> kKey = bytes_of("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
const std::vector<std::byte> kVector = bytes_of("000102030405060708090a0b0c0d0e0f");
const std::vector<std::byte> kWrapped = bytes_of("f58c4c04d6e5f1ba779eabfb5f7bfbd6");

Result<SecretBytes> unwrap(const std::vector<std::byte>& vector, std::span<const std::byte> wrapped) {
  return unwrap_secret(std::span<const std::byte, kWrappingKeyBytes>(kKey),
                       std::span<const std::byte, kWrappingVectorBytes>(vector), wrapped);
}

TEST(WrappedSecret, IsDecryptedAndLosesItsPadding) {
  // The plain text ends in 2a, which is no padding. The vector is XORed to the first block: so it can make any of it.
  std::vector<std::byte> vector = kVector;
  vector.back() ^= std::byte{0x2a} ^ std::byte{0x05};
  const auto secret = unwrap(vector, kWrapped);
  ASSERT_TRUE(secret) << secret.error().message;
  EXPECT_TRUE(std::ranges::equal(secret->bytes(), bytes_of("6bc1bee22e409f96e93d7e")));
}

TEST(WrappedSecret, MayBeNothingButPadding) {
  std::vector<std::byte> vector = kVector;
  vector.back() ^= std::byte{0x2a} ^ std::byte{0x10};
  const auto secret = unwrap(vector, kWrapped);
  ASSERT_TRUE(secret);
  EXPECT_EQ(secret->size(), 0u);
}

TEST(WrappedSecret, AnotherKeyShowsInThePadding) {
  const auto secret = unwrap(kVector, kWrapped);
  ASSERT_FALSE(secret);
  EXPECT_EQ(secret.error().message, "Incorrect number of padding bytes (42) found on decrypted data");
}

TEST(WrappedSecret, IsMadeOfWholeBlocks) {
  EXPECT_EQ(unwrap(kVector, std::span(kWrapped).first(15)).error().message,
            "Length 15 must be a multiple of block size 16");
  EXPECT_FALSE(unwrap(kVector, {}));
}

}  // namespace
}  // namespace varve::crypto
