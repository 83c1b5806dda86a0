#include "crypto/sector_cipher.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <mutex>
#include <vector>

#include "crypto/library.h"

namespace varve::crypto {
namespace {

constexpr size_t kBlock = 16;  // AES
constexpr size_t kBlocksPerSector = kCryptoSector / kBlock;
constexpr size_t kSectorsPerBatch = 128;  // initialisation vectors made at once
using Vector = std::array<unsigned char, kBlock>;

struct FreeCipher {
  void operator()(EVP_CIPHER* cipher) const { library().EVP_CIPHER_free(cipher); }
};
using Cipher = std::unique_ptr<EVP_CIPHER, FreeCipher>;
struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { library().EVP_CIPHER_CTX_free(context); }  // wipes the key
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* raw(std::byte* bytes) {
  return reinterpret_cast<unsigned char*>(bytes);
}

enum class Direction : int { kDecrypt = 0, kEncrypt = 1 };

Result<Cipher> fetch(size_t key_bytes, const char* mode) {
  TRY(load_library());
  const std::string name = fmt::format("AES-{}-{}", key_bytes * 8, mode);
  Cipher cipher(library().EVP_CIPHER_fetch(nullptr, name.c_str(), nullptr));
  if (!cipher) {
    library().ERR_clear_error();
    return make_error(ErrorKind::kUnsupported, fmt::format("Algorithm '{}' not supported", name))
        .with_note("the installed OpenSSL does not offer it");
  }
  return cipher;
}

Result<Context> context_of(const EVP_CIPHER& cipher, std::span<const std::byte> key, Direction direction) {
  Context context(library().EVP_CIPHER_CTX_new());
  if (!context || library().EVP_CipherInit_ex2(context.get(), &cipher, raw(key.data()), nullptr,
                                               static_cast<int>(direction), nullptr) != 1) {
    return library_error("preparing a cipher");
  }
  return context;
}

// Whole blocks. EVP_Cipher knows nothing of padding, which EVP_CipherUpdate would have to be told about again with
// every vector, at a third of the throughput.
Result<void> run(EVP_CIPHER_CTX& context, const unsigned char* in, unsigned char* out, size_t length) {
  if (library().EVP_Cipher(&context, out, in, static_cast<unsigned>(length)) <= 0)
    return library_error("running a cipher");
  return {};
}

// XTS's tweaks of a sector (IEEE 1619, 5.2): each block's is the one before times x in GF(2^128), little-endian.
struct Tweak {
  uint64_t low = 0;
  uint64_t high = 0;
};
static_assert(std::endian::native == std::endian::little);  // as the whole of the XOR below

Tweak next_tweak(const Tweak& tweak) {
  return {(tweak.low << 1) ^ ((tweak.high >> 63) * 0x87), (tweak.high << 1) | (tweak.low >> 63)};
}

}  // namespace

// One thread's contexts. The library has no XTS with AES-192; there the mode is put together from ECB.
struct Worker {
  Context encrypt;
  Context decrypt;
  Context essiv;      // where the generator is essiv
  Context xts_tweak;  // where XTS is put together here
  std::vector<Vector> vectors = std::vector<Vector>(kSectorsPerBatch);
};

struct SectorCipher::State {
  CipherSpec spec;
  SecretBytes key;
  SecretBytes essiv_key;
  Cipher cipher;
  Cipher essiv;
  bool xts_by_hand = false;
  std::mutex lock;
  std::vector<std::unique_ptr<Worker>> idle;

  Result<std::unique_ptr<Worker>> make_worker();
  Result<void> make_vectors(Worker& worker, uint64_t first_sector, size_t count);
  Result<void> run_sector(Worker& worker, Direction direction, const Vector& vector, const unsigned char* in,
                          unsigned char* out);
  Result<void> run_all(Worker& worker, Direction direction, uint64_t first_sector, std::span<const std::byte> in,
                       std::span<std::byte> out);
  Result<void> run_pooled(Direction direction, uint64_t first_sector, std::span<const std::byte> in,
                          std::span<std::byte> out);
};

SectorCipher::SectorCipher(std::unique_ptr<State> state) : state_(std::move(state)) {}
SectorCipher::~SectorCipher() = default;

Result<std::unique_ptr<SectorCipher>> SectorCipher::make(const CipherSpec& spec, std::span<const std::byte> key) {
  TRY(check_cipher_spec(spec));
  CHECK(key.size() == spec.key_bytes());
  if (family_of(spec.algorithm) != "aes") {
    return make_error(ErrorKind::kUnsupported, fmt::format("Algorithm '{}' not supported", name_of(spec.algorithm)))
        .with_note("of the ciphers that QEMU knows, aes-128, aes-192 and aes-256 are read and written here");
  }
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->key = SecretBytes(key);
  const size_t one_key = key_bytes_of(spec.algorithm);
  state->xts_by_hand = spec.mode == CipherMode::kXts && spec.algorithm == CipherAlgorithm::kAes192;
  static constexpr std::array kModeNames{"ECB", "CBC", "XTS", "CTR"};  // in the order of CipherMode
  state->cipher = TRY(fetch(one_key, state->xts_by_hand ? "ECB" : kModeNames[static_cast<size_t>(spec.mode)]));
  if (spec.iv_generator == IvGenerator::kEssiv) {
    state->essiv_key = SecretBytes(digest_bytes(*spec.iv_hash));
    Hasher hasher = TRY(Hasher::make(*spec.iv_hash));
    TRY(hasher.digest(key, {}, state->essiv_key.bytes()));
    state->essiv = TRY(fetch(state->essiv_key.size(), "ECB"));
  }
  state->idle.push_back(TRY(state->make_worker()));  // a key that the library refuses shows here
  return std::unique_ptr<SectorCipher>(new SectorCipher(std::move(state)));
}

Result<std::unique_ptr<Worker>> SectorCipher::State::make_worker() {
  auto worker = std::make_unique<Worker>();
  const auto all = std::as_const(key).bytes();
  const auto data_key = xts_by_hand ? all.first(all.size() / 2) : all;
  worker->encrypt = TRY(context_of(*cipher, data_key, Direction::kEncrypt));
  worker->decrypt = TRY(context_of(*cipher, data_key, Direction::kDecrypt));
  if (xts_by_hand) worker->xts_tweak = TRY(context_of(*cipher, all.last(all.size() / 2), Direction::kEncrypt));
  if (essiv) worker->essiv = TRY(context_of(*essiv, std::as_const(essiv_key).bytes(), Direction::kEncrypt));
  return worker;
}

// The vectors of `count` sectors: their numbers, little-endian, and for essiv encrypted.
Result<void> SectorCipher::State::make_vectors(Worker& worker, uint64_t first_sector, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    uint64_t number = first_sector + i;
    if (spec.iv_generator == IvGenerator::kPlain) number &= 0xffffffff;
    Vector& vector = worker.vectors[i];
    vector.fill(0);
    for (size_t byte = 0; byte < sizeof number; ++byte) vector[byte] = static_cast<unsigned char>(number >> (8 * byte));
  }
  if (!worker.essiv) return {};
  unsigned char* vectors = worker.vectors.front().data();
  return run(*worker.essiv, vectors, vectors, count * kBlock);
}

Result<void> SectorCipher::State::run_sector(Worker& worker, Direction direction, const Vector& vector,
                                             const unsigned char* in, unsigned char* out) {
  EVP_CIPHER_CTX& context = direction == Direction::kEncrypt ? *worker.encrypt : *worker.decrypt;
  if (!xts_by_hand) {
    const unsigned char* iv = spec.mode == CipherMode::kEcb ? nullptr : vector.data();
    if (library().EVP_CipherInit_ex2(&context, nullptr, nullptr, iv, static_cast<int>(direction), nullptr) != 1)
      return library_error("preparing a cipher");
    return run(context, in, out, kCryptoSector);
  }
  std::array<Tweak, kBlocksPerSector> tweaks;
  Vector first;
  TRY(run(*worker.xts_tweak, vector.data(), first.data(), kBlock));
  std::memcpy(&tweaks[0], first.data(), kBlock);
  for (size_t i = 1; i < tweaks.size(); ++i) tweaks[i] = next_tweak(tweaks[i - 1]);
  const auto whiten = [&](const unsigned char* from, unsigned char* to) {
    for (size_t i = 0; i < tweaks.size(); ++i) {
      Tweak block;
      std::memcpy(&block, from + i * kBlock, kBlock);
      block = {block.low ^ tweaks[i].low, block.high ^ tweaks[i].high};
      std::memcpy(to + i * kBlock, &block, kBlock);
    }
  };
  whiten(in, out);
  TRY(run(context, out, out, kCryptoSector));
  whiten(out, out);
  return {};
}

Result<void> SectorCipher::State::run_all(Worker& worker, Direction direction, uint64_t first_sector,
                                          std::span<const std::byte> in, std::span<std::byte> out) {
  const size_t sectors = in.size() / kCryptoSector;
  for (size_t start = 0; start < sectors; start += kSectorsPerBatch) {
    const size_t count = std::min(kSectorsPerBatch, sectors - start);
    TRY(make_vectors(worker, first_sector + start, count));
    for (size_t i = 0; i < count; ++i) {
      const size_t at = (start + i) * kCryptoSector;
      TRY(run_sector(worker, direction, worker.vectors[i], raw(&in[at]), raw(&out[at])));
    }
  }
  return {};
}

Result<void> SectorCipher::State::run_pooled(Direction direction, uint64_t first_sector, std::span<const std::byte> in,
                                             std::span<std::byte> out) {
  CHECK(in.size() == out.size() && in.size() % kCryptoSector == 0);
  std::unique_ptr<Worker> worker;
  {
    const std::lock_guard guard(lock);
    if (!idle.empty()) {
      worker = std::move(idle.back());
      idle.pop_back();
    }
  }
  if (!worker) worker = TRY(make_worker());
  TRY(run_all(*worker, direction, first_sector, in, out));  // a context that failed is not used again
  const std::lock_guard guard(lock);
  idle.push_back(std::move(worker));
  return {};
}

Result<void> SectorCipher::encrypt(uint64_t first_sector, std::span<const std::byte> plain,
                                   std::span<std::byte> encrypted) {
  return state_->run_pooled(Direction::kEncrypt, first_sector, plain, encrypted);
}

Result<void> SectorCipher::decrypt(uint64_t first_sector, std::span<const std::byte> encrypted,
                                   std::span<std::byte> plain) {
  return state_->run_pooled(Direction::kDecrypt, first_sector, encrypted, plain);
}

}  // namespace varve::crypto
