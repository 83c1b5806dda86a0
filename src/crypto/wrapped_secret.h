// Secrets that are encrypted with another one, so that they can stand on a command line: AES-256 in CBC mode, padded
// as PKCS #7 has it (QEMU manual, "secret" objects: keyid, iv).
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "crypto/secret_bytes.h"

namespace varve::crypto {

inline constexpr size_t kWrappingKeyBytes = 32;
inline constexpr size_t kWrappingVectorBytes = 16;

// kInvalidArgument, in QEMU's words, for what is not made of whole blocks and for padding that can't be: most often,
// another key. As lenient as QEMU otherwise: of the padding only the last byte is looked at.
Result<SecretBytes> unwrap_secret(std::span<const std::byte, kWrappingKeyBytes> key,
                                  std::span<const std::byte, kWrappingVectorBytes> vector,
                                  std::span<const std::byte> wrapped);

}  // namespace varve::crypto
