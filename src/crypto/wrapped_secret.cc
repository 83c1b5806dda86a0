#include "crypto/wrapped_secret.h"

#include <fmt/format.h>

#include <climits>
#include <memory>

#include "crypto/library.h"

namespace varve::crypto {
namespace {

constexpr size_t kBlock = 16;

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { library().EVP_CIPHER_CTX_free(context); }  // wipes the key
};

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* raw(std::byte* bytes) {
  return reinterpret_cast<unsigned char*>(bytes);
}

}  // namespace

Result<SecretBytes> unwrap_secret(std::span<const std::byte, kWrappingKeyBytes> key,
                                  std::span<const std::byte, kWrappingVectorBytes> vector,
                                  std::span<const std::byte> wrapped) {
  if (wrapped.empty() || wrapped.size() % kBlock != 0 || wrapped.size() > INT_MAX) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("Length {} must be a multiple of block size {}", wrapped.size(), kBlock));
  }
  TRY(load_library());
  const std::unique_ptr<EVP_CIPHER_CTX, FreeContext> context(library().EVP_CIPHER_CTX_new());
  SecretBytes plain(wrapped.size());
  int length = 0;
  if (!context ||
      library().EVP_DecryptInit_ex2(context.get(), library().EVP_aes_256_cbc(), raw(key.data()), raw(vector.data()),
                                    nullptr) != 1 ||
      library().EVP_CIPHER_CTX_set_padding(context.get(), 0) != 1 ||
      library().EVP_DecryptUpdate(context.get(), raw(plain.bytes().data()), &length, raw(wrapped.data()),
                                  static_cast<int>(wrapped.size())) != 1) {
    return library_error("decrypting a secret");
  }
  const auto padding = std::to_integer<size_t>(plain.bytes().back());
  if (padding > kBlock) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("Incorrect number of padding bytes ({}) found on decrypted data", padding));
  }
  return SecretBytes(std::as_const(plain).bytes().first(plain.size() - padding));
}

}  // namespace varve::crypto
