#include "crypto/hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <ctime>

#include "crypto/library.h"

namespace varve::crypto {
namespace {

struct HashName {
  HashAlgorithm hash;
  const char* name;
  const char* library_name;
  size_t digest_bytes;
};
constexpr std::array kHashes{
    HashName{HashAlgorithm::kMd5, "md5", "MD5", 16},
    HashName{HashAlgorithm::kSha1, "sha1", "SHA1", 20},
    HashName{HashAlgorithm::kSha224, "sha224", "SHA224", 28},
    HashName{HashAlgorithm::kSha256, "sha256", "SHA256", 32},
    HashName{HashAlgorithm::kSha384, "sha384", "SHA384", 48},
    HashName{HashAlgorithm::kSha512, "sha512", "SHA512", 64},
    HashName{HashAlgorithm::kRipemd160, "ripemd160", "RIPEMD160", 20},
};

const HashName& entry_of(HashAlgorithm hash) {
  return *std::ranges::find(kHashes, hash, &HashName::hash);
}

const unsigned char* raw(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* raw(std::span<std::byte> bytes) {
  return reinterpret_cast<unsigned char*>(bytes.data());
}

struct FreeDigest {
  void operator()(EVP_MD* digest) const { library().EVP_MD_free(digest); }
};
using Digest = std::unique_ptr<EVP_MD, FreeDigest>;

Result<Digest> fetch(HashAlgorithm hash) {
  TRY(load_library());
  Digest digest(library().EVP_MD_fetch(nullptr, entry_of(hash).library_name, nullptr));
  if (!digest) {
    library().ERR_clear_error();
    return make_error(ErrorKind::kUnsupported, fmt::format("Hash algorithm '{}' not supported", name_of(hash)))
        .with_note("the installed OpenSSL does not offer it");
  }
  return digest;
}

uint64_t thread_nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

void cleanse(std::span<std::byte> bytes) {
  if (!bytes.empty()) ::explicit_bzero(bytes.data(), bytes.size());
}

std::optional<HashAlgorithm> hash_named(std::string_view name) {
  const auto* found = std::ranges::find(kHashes, name, &HashName::name);
  if (found == kHashes.end()) return std::nullopt;
  return found->hash;
}
const char* name_of(HashAlgorithm hash) {
  return entry_of(hash).name;
}
size_t digest_bytes(HashAlgorithm hash) {
  return entry_of(hash).digest_bytes;
}

struct DigestContext {
  Digest algorithm;
  EVP_MD_CTX* context = nullptr;
  DigestContext() = default;
  DigestContext(const DigestContext&) = delete;
  DigestContext& operator=(const DigestContext&) = delete;
  ~DigestContext() {
    if (context != nullptr) library().EVP_MD_CTX_free(context);
  }
};

namespace {

Result<std::unique_ptr<DigestContext>> context_for(HashAlgorithm hash) {
  auto context = std::make_unique<DigestContext>();
  context->algorithm = TRY(fetch(hash));
  context->context = library().EVP_MD_CTX_new();
  if (context->context == nullptr) return library_error("preparing a hash");
  return context;
}

}  // namespace

Hasher::Hasher(std::unique_ptr<DigestContext> context) : context_(std::move(context)) {}
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher::~Hasher() = default;

Result<Hasher> Hasher::make(HashAlgorithm hash) {
  return Hasher(TRY(context_for(hash)));
}

Result<void> Hasher::digest(std::span<const std::byte> first, std::span<const std::byte> second,
                            std::span<std::byte> digest) {
  EVP_MD_CTX* context = context_->context;
  if (library().EVP_DigestInit_ex2(context, context_->algorithm.get(), nullptr) != 1 ||
      library().EVP_DigestUpdate(context, first.data(), first.size()) != 1 ||
      library().EVP_DigestUpdate(context, second.data(), second.size()) != 1 ||
      library().EVP_DigestFinal_ex(context, raw(digest), nullptr) != 1) {
    return library_error("hashing");
  }
  return {};
}

RunningHash::RunningHash(std::unique_ptr<DigestContext> context) : context_(std::move(context)) {}
RunningHash::RunningHash(RunningHash&&) noexcept = default;
RunningHash::~RunningHash() = default;

Result<RunningHash> RunningHash::make(HashAlgorithm hash) {
  auto context = TRY(context_for(hash));
  if (library().EVP_DigestInit_ex2(context->context, context->algorithm.get(), nullptr) != 1) {
    return library_error("preparing a hash");
  }
  return RunningHash(std::move(context));
}

Result<void> RunningHash::update(std::span<const std::byte> bytes) {
  if (library().EVP_DigestUpdate(context_->context, bytes.data(), bytes.size()) != 1) return library_error("hashing");
  return {};
}

Result<void> RunningHash::finish(std::span<std::byte> digest) {
  if (library().EVP_DigestFinal_ex(context_->context, raw(digest), nullptr) != 1) return library_error("hashing");
  return {};
}

Result<void> pbkdf2(HashAlgorithm hash, std::span<const std::byte> passphrase, std::span<const std::byte> salt,
                    uint32_t iterations, std::span<std::byte> key) {
  if (iterations == 0 || iterations > kMaxIterations) {
    return make_error(ErrorKind::kUnsupported, fmt::format("{} iterations of the key derivation are outside of 1 to {}",
                                                           iterations, uint32_t{kMaxIterations}));
  }
  CHECK(passphrase.size() <= INT_MAX && salt.size() <= INT_MAX && key.size() <= INT_MAX);
  const Digest digest = TRY(fetch(hash));
  // An empty passphrase must not be a null pointer: the library would take that for "as before".
  static constexpr char kEmpty[] = "";
  const char* text = passphrase.empty() ? kEmpty : reinterpret_cast<const char*>(passphrase.data());
  if (library().PKCS5_PBKDF2_HMAC(text, static_cast<int>(passphrase.size()), raw(salt), static_cast<int>(salt.size()),
                                  static_cast<int>(iterations), digest.get(), static_cast<int>(key.size()),
                                  raw(key)) != 1) {
    return library_error("deriving a key from the passphrase");
  }
  return {};
}

Result<uint64_t> pbkdf2_iterations_per_second(HashAlgorithm hash, size_t key_bytes, uint64_t time_ms) {
  const uint64_t long_enough = std::min<uint64_t>(time_ms, 100) * 1'000'000;  // ns
  const std::array<std::byte, 32> salt{};
  const std::array<std::byte, 8> passphrase{};
  SecretBytes key(key_bytes);
  for (uint32_t iterations = 1u << 12;; iterations *= 4) {
    const uint64_t start = thread_nanoseconds();
    TRY(pbkdf2(hash, passphrase, salt, iterations, key.bytes()));
    const uint64_t took = thread_nanoseconds() - start;
    // A clock that stands still must not keep us here for ever.
    if (took >= long_enough || iterations >= 1u << 28)
      return static_cast<uint64_t>(iterations) * 1'000'000'000 / std::max<uint64_t>(took, 1000);
  }
}

Result<void> random_bytes(std::span<std::byte> bytes) {
  CHECK(bytes.size() <= INT_MAX);
  TRY(load_library());
  if (library().RAND_priv_bytes(raw(bytes), static_cast<int>(bytes.size())) != 1)
    return library_error("getting random bytes");
  return {};
}

}  // namespace varve::crypto
