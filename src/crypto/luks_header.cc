#include "crypto/luks_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::crypto {

namespace {

struct RawSlot {
  be32 active;
  be32 iterations;
  LuksSalt salt;
  be32 key_offset;  // sectors
  be32 stripes;
};
struct RawLuks {
  char magic[6];
  be16 version;
  char cipher[32];
  char mode[32];
  char hash[32];
  be32 payload_offset;  // sectors
  be32 key_bytes;
  std::array<std::byte, 20> key_digest;
  LuksSalt key_digest_salt;
  be32 key_digest_iterations;
  char uuid[40];
  RawSlot slots[kLuksSlots];
};
static_assert(sizeof(RawLuks) == kLuksHeaderBytes);

constexpr char kMagic[6] = {'L', 'U', 'K', 'S', '\xba', '\xbe'};
constexpr uint32_t kSlotActive = 0x00ac71f3;
constexpr uint32_t kSlotInactive = 0x0000dead;
constexpr uint64_t kHeaderSectors = kLuksKeyAreaOffset / kCryptoSector;

Error corrupt(std::string what) {
  return make_error(ErrorKind::kCorrupt, std::move(what));
}
Error unsupported(std::string what) {
  return make_error(ErrorKind::kUnsupported, std::move(what));
}

template <size_t N>
Result<std::string_view> text_of(const char (&field)[N], const char* what) {
  const size_t length = ::strnlen(field, N);
  if (length == N) return corrupt(fmt::format("LUKS header {} is not NUL terminated", what));
  return std::string_view(field, length);
}

template <size_t N>
void put_text(char (&field)[N], std::string_view text) {
  CHECK(text.size() <= N);
  std::ranges::copy(text, field);
}

// As cryptsetup lays it out: whole sectors, then whole areas of the header's size.
uint64_t material_sectors(uint64_t key_bytes, uint64_t stripes) {
  return align_up(div_round_up(key_bytes * stripes, kCryptoSector), kHeaderSectors);
}

// 32-bit fields, so nothing overflows in 64 bits.
Result<void> check_slots(const RawLuks& raw) {
  struct Sectors {
    uint64_t start, end;
  };
  std::array<Sectors, kLuksSlots> areas{};
  for (size_t i = 0; i < kLuksSlots; ++i) {
    const RawSlot& slot = raw.slots[i];
    if (slot.stripes != kLuksStripes) {
      return corrupt(fmt::format("Keyslot {} is corrupted (stripes {} != {})", i, static_cast<int32_t>(slot.stripes),
                                 uint32_t{kLuksStripes}));
    }
    if (slot.active != kSlotActive && slot.active != kSlotInactive)
      return corrupt(fmt::format("Keyslot {} state (active/disable) is corrupted", i));
    if (slot.active == kSlotActive && slot.iterations == 0)
      return corrupt(fmt::format("Keyslot {} iteration count is zero", i));
    areas[i] = {slot.key_offset, slot.key_offset + material_sectors(raw.key_bytes, slot.stripes)};
    if (areas[i].start < kHeaderSectors)
      return corrupt(fmt::format("Keyslot {} is overlapping with the LUKS header", i));
    if (areas[i].end > raw.payload_offset)
      return corrupt(fmt::format("Keyslot {} is overlapping with the encrypted payload", i));
  }
  for (size_t i = 0; i < kLuksSlots; ++i)
    for (size_t j = i + 1; j < kLuksSlots; ++j)
      if (areas[i].end > areas[j].start && areas[j].end > areas[i].start)
        return corrupt(fmt::format("Keyslots {} and {} are overlapping in the header", i, j));
  return {};
}

Result<HashAlgorithm> parse_hash(std::string_view name) {
  const auto hash = hash_named(name);
  if (!hash) return unsupported(fmt::format("Hash algorithm '{}' not supported", name));
  return *hash;
}

// "xts-plain64", "cbc-essiv:sha256": mode, generator, and perhaps the generator's hash.
Result<CipherSpec> parse_cipher(std::string_view family, std::string_view text, uint64_t key_bytes) {
  CipherSpec spec;
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return corrupt(fmt::format("Unexpected cipher mode string format '{}'", text));
  std::string_view generator = text.substr(dash + 1);
  if (const size_t colon = generator.find(':'); colon != std::string_view::npos) {
    spec.iv_hash = TRY(parse_hash(generator.substr(colon + 1)));
    generator = generator.substr(0, colon);
  }
  const auto mode = cipher_mode_named(text.substr(0, dash));
  if (!mode) return unsupported(fmt::format("Cipher mode '{}' not supported", text.substr(0, dash)));
  spec.mode = *mode;
  const uint64_t one_key = spec.mode == CipherMode::kXts ? key_bytes / 2 : key_bytes;
  const auto algorithm = cipher_of_family(family, one_key);
  if (!algorithm || (spec.mode == CipherMode::kXts && key_bytes % 2 != 0)) {
    return unsupported(fmt::format("Algorithm '{}' with key size {} bytes not supported", family, one_key));
  }
  spec.algorithm = *algorithm;
  const auto iv_generator = iv_generator_named(generator);
  if (!iv_generator) return unsupported(fmt::format("IV generator '{}' not supported", generator));
  spec.iv_generator = *iv_generator;
  return spec;
}

}  // namespace

size_t LuksHeader::active_slots() const {
  return static_cast<size_t>(std::ranges::count(slots, true, &LuksSlot::active));
}

Result<LuksHeader> parse_luks_header(std::span<const std::byte, kLuksHeaderBytes> bytes) {
  RawLuks raw;
  std::memcpy(static_cast<void*>(&raw), bytes.data(), sizeof raw);
  if (std::memcmp(raw.magic, kMagic, sizeof kMagic) != 0) return corrupt("Volume is not in LUKS format");
  if (raw.version != 1) return unsupported(fmt::format("LUKS version {} is not supported", uint16_t{raw.version}));
  const std::string_view family = TRY(text_of(raw.cipher, "cipher name"));
  const std::string_view mode = TRY(text_of(raw.mode, "cipher mode"));
  const std::string_view hash = TRY(text_of(raw.hash, "hash spec"));
  if (raw.payload_offset < kHeaderSectors) return corrupt("LUKS payload is overlapping with the header");
  if (raw.key_digest_iterations == 0) return corrupt("LUKS key iteration count is zero");
  TRY(check_slots(raw));

  LuksHeader header;
  header.cipher = TRY(parse_cipher(family, mode, raw.key_bytes));
  header.hash = TRY(parse_hash(hash));
  TRY(check_cipher_spec(header.cipher));
  header.payload_offset = raw.payload_offset * kCryptoSector;
  header.key_digest = raw.key_digest;
  header.key_digest_salt = raw.key_digest_salt;
  header.key_digest_iterations = raw.key_digest_iterations;
  header.uuid.assign(raw.uuid, ::strnlen(raw.uuid, sizeof raw.uuid));
  for (size_t i = 0; i < kLuksSlots; ++i) {
    const RawSlot& slot = raw.slots[i];
    header.slots[i] = {slot.active == kSlotActive, slot.iterations, slot.salt, slot.key_offset * kCryptoSector,
                       slot.stripes};
  }
  return header;
}

std::array<std::byte, kLuksHeaderBytes> serialize_luks_header(const LuksHeader& header) {
  RawLuks raw{};
  std::memcpy(raw.magic, kMagic, sizeof kMagic);
  raw.version = 1;
  const CipherSpec& cipher = header.cipher;
  put_text(raw.cipher, family_of(cipher.algorithm));
  put_text(raw.mode, fmt::format("{}-{}{}", name_of(cipher.mode), name_of(cipher.iv_generator),
                                 cipher.iv_hash ? fmt::format(":{}", name_of(*cipher.iv_hash)) : std::string()));
  put_text(raw.hash, name_of(header.hash));
  raw.payload_offset = static_cast<uint32_t>(header.payload_offset / kCryptoSector);
  raw.key_bytes = static_cast<uint32_t>(cipher.key_bytes());
  raw.key_digest = header.key_digest;
  raw.key_digest_salt = header.key_digest_salt;
  raw.key_digest_iterations = header.key_digest_iterations;
  put_text(raw.uuid, header.uuid);
  for (size_t i = 0; i < kLuksSlots; ++i) {
    const LuksSlot& slot = header.slots[i];
    raw.slots[i].active = slot.active ? kSlotActive : kSlotInactive;
    raw.slots[i].iterations = slot.iterations;
    raw.slots[i].salt = slot.salt;
    raw.slots[i].key_offset = static_cast<uint32_t>(slot.key_offset / kCryptoSector);
    raw.slots[i].stripes = slot.stripes;
  }
  std::array<std::byte, kLuksHeaderBytes> bytes;
  std::memcpy(bytes.data(), &raw, sizeof raw);
  return bytes;
}

uint64_t luks_material_bytes(const CipherSpec& cipher) {
  return uint64_t{cipher.key_bytes()} * kLuksStripes;
}
uint64_t luks_material_area(const CipherSpec& cipher) {
  return material_sectors(cipher.key_bytes(), kLuksStripes) * kCryptoSector;
}
uint64_t luks_header_area(const CipherSpec& cipher) {
  return kLuksKeyAreaOffset + kLuksSlots * luks_material_area(cipher);
}

}  // namespace varve::crypto
