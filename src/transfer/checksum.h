// The checksum of a file, in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "crypto/hash.h"

namespace varve {

enum class ChecksumKind : uint8_t {
  kSha256,  // what sha256sum prints
  // SHA-256 of what is not zero, and of how much is in between: disks are mostly holes, and to compare two copies
  // nobody has to compute the checksum of terabytes of zeroes. The same whether zeroes are a hole or not.
  kWithoutZeroes,
};

class Checksum {
 public:
  static Result<Checksum> begin(ChecksumKind kind);

  void add(std::span<const std::byte> bytes);
  void add_zeroes(uint64_t length);
  // In hexadecimal. Once.
  Result<std::string> finish();

 private:
  Checksum(ChecksumKind kind, crypto::RunningHash hash);
  void hash(std::span<const std::byte> bytes);
  void add_block(std::span<const std::byte> block);
  void end_zeroes();

  ChecksumKind kind_;
  crypto::RunningHash hash_;
  Result<void> outcome_;
  // kWithoutZeroes only: it looks at blocks of one size, wherever what is added begins and ends.
  std::vector<std::byte> block_;
  uint64_t zero_blocks_ = 0;
};

// Of a text.
Result<std::string> checksum_of(std::string_view text);

}  // namespace varve
