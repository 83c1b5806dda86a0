#include "transfer/checksum.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/zero_bytes.h"

namespace varve {

namespace {

constexpr size_t kBlock = size_t{64} << 10;

std::string hexadecimal(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

}  // namespace

Checksum::Checksum(ChecksumKind kind, crypto::RunningHash hash) : kind_(kind), hash_(std::move(hash)) {}

Result<Checksum> Checksum::begin(ChecksumKind kind) {
  return Checksum(kind, TRY(crypto::RunningHash::make(crypto::HashAlgorithm::kSha256)));
}

void Checksum::hash(std::span<const std::byte> bytes) {
  if (outcome_) outcome_ = hash_.update(bytes);
}

void Checksum::add(std::span<const std::byte> bytes) {
  if (kind_ == ChecksumKind::kSha256) return hash(bytes);
  while (!bytes.empty()) {
    const size_t length = std::min(kBlock - block_.size(), bytes.size());
    if (length == kBlock) {
      add_block(bytes.first(length));
    } else {
      block_.insert(block_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
      if (block_.size() == kBlock) {
        add_block(block_);
        block_.clear();
      }
    }
    bytes = bytes.subspan(length);
  }
}

void Checksum::add_zeroes(uint64_t length) {
  static constexpr std::array<std::byte, kBlock> kZeroes{};
  if (kind_ == ChecksumKind::kWithoutZeroes) {
    const uint64_t first = block_.empty() ? 0 : std::min<uint64_t>(kBlock - block_.size(), length);
    add(std::span(kZeroes).first(first));
    length -= first;
    zero_blocks_ += length / kBlock;
    length %= kBlock;
  }
  for (uint64_t done = 0; done < length; done += kBlock) {
    add(std::span(kZeroes).first(std::min<uint64_t>(kBlock, length - done)));
  }
}

void Checksum::add_block(std::span<const std::byte> block) {
  if (all_zero(block)) {
    ++zero_blocks_;
    return;
  }
  end_zeroes();
  hash(block);
}

void Checksum::end_zeroes() {
  std::array<std::byte, 8> count{};
  for (size_t i = 0; i < count.size(); ++i) count[i] = static_cast<std::byte>(zero_blocks_ >> (8 * i));
  hash(count);
  zero_blocks_ = 0;
}

Result<std::string> Checksum::finish() {
  if (kind_ == ChecksumKind::kWithoutZeroes) {
    if (!block_.empty()) add_block(block_);
    end_zeroes();
  }
  TRY(std::move(outcome_));
  std::array<std::byte, 32> digest{};
  TRY(hash_.finish(digest));
  return hexadecimal(digest);
}

Result<std::string> checksum_of(std::string_view text) {
  auto hash = TRY(crypto::RunningHash::make(crypto::HashAlgorithm::kSha256));
  TRY(hash.update(std::as_bytes(std::span(text))));
  std::array<std::byte, 32> digest{};
  TRY(hash.finish(digest));
  return hexadecimal(digest);
}

}  // namespace varve
