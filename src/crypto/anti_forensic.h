// LUKS's anti-forensic splitter (LUKS On-Disk Format Specification 1.2, section 2.4): a key blown up to `stripes` times
// its size, so that losing any part of the material on disk loses the key.
#pragma once

#include "crypto/hash.h"

namespace varve::crypto {

// `material` has stripes * key.size() bytes; stripes is at least 1.
Result<void> split_key(HashAlgorithm hash, std::span<const std::byte> key, uint32_t stripes,
                       std::span<std::byte> material);
Result<void> merge_key(HashAlgorithm hash, std::span<const std::byte> material, uint32_t stripes,
                       std::span<std::byte> key);

}  // namespace varve::crypto
