// The header of LUKS version 1 (LUKS On-Disk Format Specification 1.2, "phdr"), as cryptsetup and QEMU write it: which
// cipher, and eight slots that each may hold the disk's key, encrypted with a passphrase. Parsed once and checked
// against every limit; nothing is decrypted here. Messages are QEMU's.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "crypto/sector_cipher.h"

namespace varve::crypto {

inline constexpr size_t kLuksHeaderBytes = 592;
inline constexpr size_t kLuksSlots = 8;
inline constexpr uint32_t kLuksStripes = 4000;
inline constexpr uint64_t kLuksKeyAreaOffset = 4096;  // the first slot's key material in a header made here

using LuksSalt = std::array<std::byte, 32>;

struct LuksSlot {
  bool active = false;
  uint32_t iterations = 0;
  LuksSalt salt{};
  uint64_t key_offset = 0;  // bytes from the header
  uint32_t stripes = kLuksStripes;
};

struct LuksHeader {
  CipherSpec cipher;
  HashAlgorithm hash = HashAlgorithm::kSha256;  // of the key derivation and the splitter
  uint64_t payload_offset = 0;                  // bytes; qcow2: the size of the whole header
  std::array<std::byte, 20> key_digest{};       // PBKDF2 of the disk's key: tells a right passphrase from a wrong one
  LuksSalt key_digest_salt{};
  uint32_t key_digest_iterations = 0;
  std::string uuid;  // at most 40 bytes
  std::array<LuksSlot, kLuksSlots> slots;

  size_t active_slots() const;
};

// kCorrupt for what contradicts the format or QEMU's limits (4000 stripes; key material between header and payload, no
// two slots' overlapping), kUnsupported for names that nobody knows here.
Result<LuksHeader> parse_luks_header(std::span<const std::byte, kLuksHeaderBytes> bytes);
std::array<std::byte, kLuksHeaderBytes> serialize_luks_header(const LuksHeader& header);

// The bytes of a slot's key material: as they count, and as they lie in the file (whole sectors, and whole 4096 bytes).
uint64_t luks_material_bytes(const CipherSpec& cipher);
uint64_t luks_material_area(const CipherSpec& cipher);
// The bytes of a whole header, from its beginning to the payload.
uint64_t luks_header_area(const CipherSpec& cipher);

}  // namespace varve::crypto
