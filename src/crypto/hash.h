// Hash functions, random bytes, and keys derived from passphrases (PBKDF2, RFC 8018): what LUKS needs of them, from
// OpenSSL's libcrypto. Names are QEMU's and the LUKS header's: "sha256", "ripemd160".
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "base/result.h"
#include "crypto/secret_bytes.h"

namespace varve::crypto {

enum class HashAlgorithm : uint8_t { kMd5, kSha1, kSha224, kSha256, kSha384, kSha512, kRipemd160 };

std::optional<HashAlgorithm> hash_named(std::string_view name);
const char* name_of(HashAlgorithm hash);
size_t digest_bytes(HashAlgorithm hash);

struct DigestContext;  // the library's

// Hashes many small pieces with one fetched algorithm.
class Hasher {
 public:
  static Result<Hasher> make(HashAlgorithm hash);
  Hasher(Hasher&&) noexcept;
  ~Hasher();
  // The digest of `first` followed by `second`; `digest` has digest_bytes() and may lie where an input does.
  Result<void> digest(std::span<const std::byte> first, std::span<const std::byte> second, std::span<std::byte> digest);

 private:
  explicit Hasher(std::unique_ptr<DigestContext> context);
  std::unique_ptr<DigestContext> context_;
};

// The digest of what comes in pieces.
class RunningHash {
 public:
  static Result<RunningHash> make(HashAlgorithm hash);
  RunningHash(RunningHash&&) noexcept;
  ~RunningHash();
  Result<void> update(std::span<const std::byte> bytes);
  // Once, at the end; `digest` has digest_bytes().
  Result<void> finish(std::span<std::byte> digest);

 private:
  explicit RunningHash(std::unique_ptr<DigestContext> context);
  std::unique_ptr<DigestContext> context_;
};

// What PBKDF2 is asked for at most: the library counts in int.
inline constexpr uint32_t kMaxIterations = 0x7fffffff;

// kUnsupported where `iterations` is 0 or more than kMaxIterations.
Result<void> pbkdf2(HashAlgorithm hash, std::span<const std::byte> passphrase, std::span<const std::byte> salt,
                    uint32_t iterations, std::span<std::byte> key);
// How many iterations for `key_bytes` this thread does in a second of its own time, measured for a tenth of one, or for
// about `time_ms` where that is less.
Result<uint64_t> pbkdf2_iterations_per_second(HashAlgorithm hash, size_t key_bytes, uint64_t time_ms);

Result<void> random_bytes(std::span<std::byte> bytes);

}  // namespace varve::crypto
