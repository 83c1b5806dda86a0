// The functions of OpenSSL's libcrypto that are used here (https://docs.openssl.org/3.0/man3/), which is loaded when
// the first of them is; for this module's .cc files.
#pragma once

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "base/result.h"

namespace varve::crypto {

#define VARVE_CRYPTO_FUNCTIONS(X) \
  X(ERR_clear_error)              \
  X(ERR_error_string_n)           \
  X(ERR_get_error)                \
  X(EVP_CIPHER_CTX_free)          \
  X(EVP_CIPHER_CTX_new)           \
  X(EVP_CIPHER_CTX_set_padding)   \
  X(EVP_CIPHER_fetch)             \
  X(EVP_CIPHER_free)              \
  X(EVP_Cipher)                   \
  X(EVP_CipherInit_ex2)           \
  X(EVP_DecryptInit_ex2)          \
  X(EVP_DecryptUpdate)            \
  X(EVP_DigestFinal_ex)           \
  X(EVP_DigestInit_ex2)           \
  X(EVP_DigestUpdate)             \
  X(EVP_MD_CTX_free)              \
  X(EVP_MD_CTX_new)               \
  X(EVP_MD_fetch)                 \
  X(EVP_MD_free)                  \
  X(EVP_aes_256_cbc)              \
  X(PKCS5_PBKDF2_HMAC)            \
  X(RAND_priv_bytes)

struct Library {
#define VARVE_CRYPTO_MEMBER(name) decltype(&::name) name = nullptr;
  VARVE_CRYPTO_FUNCTIONS(VARVE_CRYPTO_MEMBER)
#undef VARVE_CRYPTO_MEMBER
};

// Calls from several threads are safe. kUnsupported where there is no libcrypto, or one that lacks a function.
Result<const Library*> load_library();
// After load_library() has succeeded.
const Library& library();

// kInternal: "doing: the library's reason". Empties the library's queue of errors.
Error library_error(const char* doing);

}  // namespace varve::crypto
