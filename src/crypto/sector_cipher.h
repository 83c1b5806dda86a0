// Encryption of a disk, sector by sector of 512 bytes: each with an initialisation vector made from its number, so that
// any of them can be read and written alone. Modes and vectors are dm-crypt's and QEMU's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "crypto/hash.h"

namespace varve::crypto {

inline constexpr size_t kCryptoSector = 512;

// Every cipher that a LUKS header of QEMU's may name. libcrypto has the AES ones; the others are known by name.
enum class CipherAlgorithm : uint8_t {
  kAes128,
  kAes192,
  kAes256,
  kCast5,
  kSerpent128,
  kSerpent192,
  kSerpent256,
  kTwofish128,
  kTwofish192,
  kTwofish256,
};
enum class CipherMode : uint8_t { kEcb, kCbc, kXts, kCtr };
enum class IvGenerator : uint8_t { kPlain, kPlain64, kEssiv };

// As a LUKS header has them: the family ("aes") and the bytes of one key; and as QEMU does: "aes-256".
std::optional<CipherAlgorithm> cipher_of_family(std::string_view family, uint64_t key_bytes);
std::optional<CipherAlgorithm> cipher_named(std::string_view name);
std::string_view family_of(CipherAlgorithm cipher);
size_t key_bytes_of(CipherAlgorithm cipher);
const char* name_of(CipherAlgorithm cipher);

std::optional<CipherMode> cipher_mode_named(std::string_view name);
const char* name_of(CipherMode mode);
std::optional<IvGenerator> iv_generator_named(std::string_view name);
const char* name_of(IvGenerator generator);

struct CipherSpec {
  CipherAlgorithm algorithm = CipherAlgorithm::kAes256;
  CipherMode mode = CipherMode::kXts;
  IvGenerator iv_generator = IvGenerator::kPlain64;
  std::optional<HashAlgorithm> iv_hash = std::nullopt;  // essiv's; without effect for the others
  // XTS takes two keys.
  size_t key_bytes() const { return key_bytes_of(algorithm) * (mode == CipherMode::kXts ? 2 : 1); }
  bool operator==(const CipherSpec&) const = default;
};

// What cannot be, whatever the library (essiv with a hash whose digest is no key of the cipher): kInvalidArgument.
Result<void> check_cipher_spec(const CipherSpec& spec);

// Calls from several threads are safe; each has a library context of its own from a pool.
class SectorCipher {
 public:
  // `key` has spec.key_bytes(). kUnsupported for a cipher that the library does not have.
  static Result<std::unique_ptr<SectorCipher>> make(const CipherSpec& spec, std::span<const std::byte> key);
  ~SectorCipher();

  // Whole sectors, the first with this number. Input and output have one size and are the same or apart.
  Result<void> encrypt(uint64_t first_sector, std::span<const std::byte> plain, std::span<std::byte> encrypted);
  Result<void> decrypt(uint64_t first_sector, std::span<const std::byte> encrypted, std::span<std::byte> plain);

 private:
  struct State;
  explicit SectorCipher(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace varve::crypto
