#include "crypto/anti_forensic.h"

#include <algorithm>

#include "base/endian.h"

namespace varve::crypto {
namespace {

void xor_into(std::span<std::byte> target, std::span<const std::byte> source) {
  for (size_t i = 0; i < target.size(); ++i) target[i] ^= source[i];
}

// The specification's diffusion: every piece of a digest's size becomes the hash of its number and itself.
Result<void> diffuse(Hasher& hasher, size_t digest_size, std::span<std::byte> block) {
  std::array<std::byte, 64> digest{};
  const auto result = std::span(digest).first(digest_size);
  for (size_t piece = 0; piece * digest_size < block.size(); ++piece) {
    const be32 number(static_cast<uint32_t>(piece));
    const size_t start = piece * digest_size;
    const auto part = block.subspan(start, std::min(digest_size, block.size() - start));
    TRY(hasher.digest(std::as_bytes(std::span(&number, 1)), part, result));
    std::ranges::copy(result.first(part.size()), part.begin());
  }
  cleanse(digest);
  return {};
}

}  // namespace

Result<void> split_key(HashAlgorithm hash, std::span<const std::byte> key, uint32_t stripes,
                       std::span<std::byte> material) {
  CHECK(stripes != 0 && material.size() == stripes * key.size());
  Hasher hasher = TRY(Hasher::make(hash));
  SecretBytes block(key.size());
  const auto last = material.last(key.size());
  TRY(random_bytes(material.first(material.size() - key.size())));
  for (uint32_t i = 0; i + 1 < stripes; ++i) {
    xor_into(block.bytes(), material.subspan(i * key.size(), key.size()));
    TRY(diffuse(hasher, digest_bytes(hash), block.bytes()));
  }
  std::ranges::copy(key, last.begin());
  xor_into(last, block.bytes());
  return {};
}

Result<void> merge_key(HashAlgorithm hash, std::span<const std::byte> material, uint32_t stripes,
                       std::span<std::byte> key) {
  CHECK(stripes != 0 && material.size() == stripes * key.size());
  Hasher hasher = TRY(Hasher::make(hash));
  SecretBytes block(key.size());
  for (uint32_t i = 0; i + 1 < stripes; ++i) {
    xor_into(block.bytes(), material.subspan(i * key.size(), key.size()));
    TRY(diffuse(hasher, digest_bytes(hash), block.bytes()));
  }
  std::ranges::copy(material.last(key.size()), key.begin());
  xor_into(key, block.bytes());
  return {};
}

}  // namespace varve::crypto
