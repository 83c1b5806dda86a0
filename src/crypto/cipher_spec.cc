#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "crypto/sector_cipher.h"

namespace varve::crypto {
namespace {

struct CipherName {
  CipherAlgorithm cipher;
  const char* name;  // the family up to the dash
  size_t key_bytes;
};
constexpr std::array kCiphers{
    CipherName{CipherAlgorithm::kAes128, "aes-128", 16},
    CipherName{CipherAlgorithm::kAes192, "aes-192", 24},
    CipherName{CipherAlgorithm::kAes256, "aes-256", 32},
    CipherName{CipherAlgorithm::kCast5, "cast5-128", 16},
    CipherName{CipherAlgorithm::kSerpent128, "serpent-128", 16},
    CipherName{CipherAlgorithm::kSerpent192, "serpent-192", 24},
    CipherName{CipherAlgorithm::kSerpent256, "serpent-256", 32},
    CipherName{CipherAlgorithm::kTwofish128, "twofish-128", 16},
    CipherName{CipherAlgorithm::kTwofish192, "twofish-192", 24},
    CipherName{CipherAlgorithm::kTwofish256, "twofish-256", 32},
};

constexpr std::array kModes{
    std::pair{CipherMode::kEcb, "ecb"},
    std::pair{CipherMode::kCbc, "cbc"},
    std::pair{CipherMode::kXts, "xts"},
    std::pair{CipherMode::kCtr, "ctr"},
};
constexpr std::array kGenerators{
    std::pair{IvGenerator::kPlain, "plain"},
    std::pair{IvGenerator::kPlain64, "plain64"},
    std::pair{IvGenerator::kEssiv, "essiv"},
};

template <typename Value, size_t N>
std::optional<Value> value_named(const std::array<std::pair<Value, const char*>, N>& names, std::string_view name) {
  const auto* found = std::ranges::find(names, name, &std::pair<Value, const char*>::second);
  if (found == names.end()) return std::nullopt;
  return found->first;
}
template <typename Value, size_t N>
const char* name_in(const std::array<std::pair<Value, const char*>, N>& names, Value value) {
  return std::ranges::find(names, value, &std::pair<Value, const char*>::first)->second;
}

const CipherName& entry_of(CipherAlgorithm cipher) {
  return *std::ranges::find(kCiphers, cipher, &CipherName::cipher);
}

}  // namespace

std::optional<CipherAlgorithm> cipher_of_family(std::string_view family, uint64_t key_bytes) {
  for (const CipherName& c : kCiphers)
    if (family_of(c.cipher) == family && c.key_bytes == key_bytes) return c.cipher;
  return std::nullopt;
}
std::optional<CipherAlgorithm> cipher_named(std::string_view name) {
  const auto* found = std::ranges::find(kCiphers, name, &CipherName::name);
  if (found == kCiphers.end()) return std::nullopt;
  return found->cipher;
}
std::string_view family_of(CipherAlgorithm cipher) {
  const std::string_view name = entry_of(cipher).name;
  return name.substr(0, name.find('-'));
}
size_t key_bytes_of(CipherAlgorithm cipher) {
  return entry_of(cipher).key_bytes;
}
const char* name_of(CipherAlgorithm cipher) {
  return entry_of(cipher).name;
}

std::optional<CipherMode> cipher_mode_named(std::string_view name) {
  return value_named(kModes, name);
}
const char* name_of(CipherMode mode) {
  return name_in(kModes, mode);
}
std::optional<IvGenerator> iv_generator_named(std::string_view name) {
  return value_named(kGenerators, name);
}
const char* name_of(IvGenerator generator) {
  return name_in(kGenerators, generator);
}

Result<void> check_cipher_spec(const CipherSpec& spec) {
  if (spec.iv_generator != IvGenerator::kEssiv) return {};
  if (!spec.iv_hash) return make_error(ErrorKind::kInvalidArgument, "Missing IV generator hash specification");
  // The vector's own cipher has the digest for its key, whatever the length of the disk's (dm-crypt does so).
  const size_t digest = digest_bytes(*spec.iv_hash);
  if (digest == key_bytes_of(spec.algorithm)) return {};
  const std::string_view family = family_of(spec.algorithm);
  if (family == "cast5") {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("Cipher {} not supported with essiv", name_of(spec.algorithm)));
  }
  if (!cipher_of_family(family, digest)) {
    const std::string_view title = family == "aes" ? "AES" : family == "serpent" ? "Serpent" : "Twofish";
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("No {} cipher with key size {} available", title, digest));
  }
  return {};
}

}  // namespace varve::crypto
