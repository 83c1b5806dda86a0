#include "crypto/luks_volume.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/checked.h"
#include "crypto/anti_forensic.h"

namespace varve::crypto {
namespace {

constexpr uint32_t kMinIterations = 1000;

Error invalid(std::string what) {
  return make_error(ErrorKind::kInvalidArgument, std::move(what));
}

// A version 4 UUID (RFC 4122), as text.
Result<std::string> random_uuid() {
  std::array<std::byte, 16> bytes;
  TRY(random_bytes(bytes));
  bytes[6] = (bytes[6] & std::byte{0x0f}) | std::byte{0x40};
  bytes[8] = (bytes[8] & std::byte{0x3f}) | std::byte{0x80};
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

// Iterations that take `time_ms`, divided by `divisor`.
Result<uint32_t> iterations_for(HashAlgorithm hash, size_t key_bytes, uint64_t time_ms, uint64_t divisor) {
  const uint64_t per_second = TRY(pbkdf2_iterations_per_second(hash, key_bytes, time_ms));
  const auto scaled = checked_mul(per_second, time_ms);
  if (!scaled)
    return invalid(fmt::format("PBKDF iterations {} too large to scale: Numerical result out of range", per_second));
  const uint64_t iterations = *scaled / 1000 / divisor;
  if (iterations > kMaxIterations) {
    return invalid(fmt::format("PBKDF iterations {} larger than {}: Numerical result out of range", iterations,
                               uint32_t{kMaxIterations}));
  }
  return std::max(static_cast<uint32_t>(iterations), kMinIterations);
}

// Key material as it lies in the file, in whole sectors: where a key's stripes end within one, zeroes follow, as
// cryptsetup has it.
SecretBytes material_buffer(const LuksHeader& header) {
  return SecretBytes(align_up(luks_material_bytes(header.cipher), kCryptoSector));
}

// A header's payload may begin further behind than what the image says is there of the header.
Result<void> check_reach(const LuksArea& area, const LuksHeader& header, const LuksSlot& slot) {
  if (slot.key_offset + align_up(luks_material_bytes(header.cipher), kCryptoSector) <= area.length) return {};
  return make_error(ErrorKind::kCorrupt, "Request for data outside of extension header");
}

// Splits and encrypts `key` for a slot whose salt and iterations are set.
Result<SecretBytes> seal_key(const LuksHeader& header, const LuksSlot& slot, const SecretBytes& key,
                             const SecretBytes& passphrase) {
  SecretBytes slot_key(header.cipher.key_bytes());
  TRY(pbkdf2(header.hash, passphrase.bytes(), slot.salt, slot.iterations, slot_key.bytes()));
  const auto cipher = TRY(SectorCipher::make(header.cipher, slot_key.bytes()));
  SecretBytes material = material_buffer(header);
  TRY(split_key(header.hash, key.bytes(), slot.stripes, material.bytes().first(luks_material_bytes(header.cipher))));
  TRY(cipher->encrypt(0, material.bytes(), material.bytes()));
  return material;
}

// The disk's key from one slot; nothing where the passphrase is not this slot's.
Result<std::optional<SecretBytes>> open_slot(const LuksArea& area, const LuksHeader& header, const LuksSlot& slot,
                                             const SecretBytes& passphrase) {
  if (!slot.active) return std::optional<SecretBytes>();
  TRY(check_reach(area, header, slot));
  SecretBytes slot_key(header.cipher.key_bytes());
  TRY(pbkdf2(header.hash, passphrase.bytes(), slot.salt, slot.iterations, slot_key.bytes()));
  const auto cipher = TRY(SectorCipher::make(header.cipher, slot_key.bytes()));
  SecretBytes material = material_buffer(header);
  TRY(area.device->read_at(area.offset + slot.key_offset, material.bytes()));
  TRY(cipher->decrypt(0, material.bytes(), material.bytes()));
  SecretBytes key(header.cipher.key_bytes());
  TRY(merge_key(header.hash, material.bytes().first(luks_material_bytes(header.cipher)), slot.stripes, key.bytes()));
  std::array<std::byte, 20> digest;
  TRY(pbkdf2(header.hash, key.bytes(), header.key_digest_salt, header.key_digest_iterations, digest));
  if (digest != header.key_digest) return std::optional<SecretBytes>();
  return std::optional(std::move(key));
}

// The header's two sectors are written apart: a slot whose entry lies across their border must never be active with a
// part of its salt missing. So the sector with a slot's state goes last where it becomes active, first where it ceases.
enum class HeaderOrder : uint8_t { kStateLast, kStateFirst };

Result<void> write_header(const LuksArea& area, const LuksHeader& header, HeaderOrder order) {
  const auto bytes = serialize_luks_header(header);
  const auto all = std::span<const std::byte>(bytes);
  const auto write = [&](uint64_t at, std::span<const std::byte> part) -> Result<void> {
    TRY(area.device->write_at(area.offset + at, part));
    return area.device->flush();  // one half of the header | the other, and what follows it
  };
  const auto first = all.first(kCryptoSector);
  const auto second = all.subspan(kCryptoSector);
  if (order == HeaderOrder::kStateFirst) {
    TRY(write(0, first));
    return write(kCryptoSector, second);
  }
  TRY(write(kCryptoSector, second));
  return write(0, first);
}

// `Number` is what QEMU prints a slot as: unsigned where one is added, signed where one is erased.
template <typename Number>
Result<void> check_slot_number(uint64_t slot) {
  if (slot < kLuksSlots) return {};
  return invalid(
      fmt::format("Invalid keyslot {} specified, must be between 0 and {}", static_cast<Number>(slot), kLuksSlots - 1));
}

Result<void> erase(const LuksArea& area, LuksHeader& header, size_t slot) {
  LuksSlot& entry = header.slots[slot];
  TRY(check_reach(area, header, entry));
  entry.active = false;
  entry.iterations = 0;
  entry.salt = {};
  TRY(write_header(area, header, HeaderOrder::kStateFirst));
  // QEMU writes forty times, without a flush in between: what reaches the disk is the last.
  SecretBytes noise = material_buffer(header);
  TRY(random_bytes(noise.bytes()));
  TRY(area.device->write_at(area.offset + entry.key_offset, noise.bytes()));
  return area.device->flush();  // the old key material is gone | the caller says so
}

}  // namespace

Result<std::vector<std::byte>> make_luks_header(const LuksFormat& format, const SecretBytes& passphrase) {
  CHECK(format.iteration_time_ms != 0);
  LuksHeader header;
  header.cipher = format.cipher;
  header.hash = format.hash;
  TRY(check_cipher_spec(header.cipher));
  SecretBytes key(header.cipher.key_bytes());
  TRY(random_bytes(key.bytes()));
  (void)TRY(SectorCipher::make(header.cipher, key.bytes()));  // refuses what the library does not have
  header.uuid = TRY(random_uuid());
  header.payload_offset = luks_header_area(header.cipher);
  for (size_t i = 0; i < kLuksSlots; ++i)
    header.slots[i].key_offset = kLuksKeyAreaOffset + i * luks_material_area(header.cipher);
  TRY(random_bytes(header.key_digest_salt));
  // An eighth of the time, as cryptsetup does: eight slots may have to be tried.
  header.key_digest_iterations =
      TRY(iterations_for(header.hash, header.key_digest.size(), format.iteration_time_ms, 8));
  TRY(pbkdf2(header.hash, key.bytes(), header.key_digest_salt, header.key_digest_iterations, header.key_digest));

  LuksSlot& slot = header.slots[0];
  TRY(random_bytes(slot.salt));
  slot.iterations = TRY(iterations_for(header.hash, key.size(), format.iteration_time_ms, 1));
  slot.active = true;
  const SecretBytes material = TRY(seal_key(header, slot, key, passphrase));

  std::vector<std::byte> bytes(slot.key_offset + material.size());
  std::ranges::copy(serialize_luks_header(header), bytes.begin());
  std::ranges::copy(material.bytes(), bytes.begin() + static_cast<std::ptrdiff_t>(slot.key_offset));
  return bytes;
}

Result<LuksHeader> read_luks_header(const LuksArea& area) {
  const uint64_t size = TRY(area.device->size());
  std::array<std::byte, kLuksHeaderBytes> bytes{};
  if (area.length < bytes.size() || area.offset > size || size - area.offset < bytes.size()) {
    return make_error(ErrorKind::kCorrupt, "the encryption header lies outside of the file");
  }
  TRY(area.device->read_at(area.offset, bytes));
  return parse_luks_header(bytes);
}

Result<SecretBytes> unlock(const LuksArea& area, const LuksHeader& header, const SecretBytes& passphrase) {
  for (const LuksSlot& slot : header.slots)
    if (auto key = TRY(open_slot(area, header, slot, passphrase))) return std::move(*key);
  return make_error(ErrorKind::kPermission, "Invalid password, cannot unlock any keyslot");
}

Result<void> add_key_slot(const LuksArea& area, const SecretBytes& passphrase, const SecretBytes& new_passphrase,
                          std::optional<uint64_t> slot, uint64_t iteration_time_ms, KeySlotCare care) {
  LuksHeader header = TRY(read_luks_header(area));
  if (slot) {
    TRY(check_slot_number<uint32_t>(*slot));
  } else {
    const auto free = std::ranges::find(header.slots, false, &LuksSlot::active);
    if (free == header.slots.end()) return invalid("Can't add a keyslot - all keyslots are in use");
    slot = static_cast<uint64_t>(free - header.slots.begin());
  }
  LuksSlot& entry = header.slots[*slot];
  if (care != KeySlotCare::kForce && entry.active) {
    return invalid(fmt::format("Refusing to overwrite active keyslot {} - please erase it first", *slot));
  }
  TRY(check_reach(area, header, entry));
  const SecretBytes key = TRY(unlock(area, header, passphrase));
  TRY(random_bytes(entry.salt));
  entry.iterations = TRY(iterations_for(header.hash, key.size(), iteration_time_ms, 1));
  const SecretBytes material = TRY(seal_key(header, entry, key, new_passphrase));
  TRY(area.device->write_at(area.offset + entry.key_offset, material.bytes()));
  TRY(area.device->flush());  // the key material | the header that says it is there
  entry.active = true;
  return write_header(area, header, HeaderOrder::kStateLast);
}

Result<void> erase_key_slot(const LuksArea& area, uint64_t slot, const SecretBytes* passphrase, KeySlotCare care) {
  LuksHeader header = TRY(read_luks_header(area));
  TRY(check_slot_number<int32_t>(slot));
  if (passphrase != nullptr && !TRY(open_slot(area, header, header.slots[slot], *passphrase))) {
    return invalid(fmt::format("Given keyslot {} doesn't contain the given old password for erase operation", slot));
  }
  if (care != KeySlotCare::kForce) {
    if (!header.slots[slot].active) return invalid(fmt::format("Given keyslot {} is already erased (inactive) ", slot));
    if (header.active_slots() == 1) {
      return invalid(
          fmt::format("Attempt to erase the only active keyslot {} which will erase all the data in the "
                      "image irreversibly - refusing operation",
                      slot));
    }
  }
  return erase(area, header, slot);
}

Result<void> erase_key_slots_of(const LuksArea& area, const SecretBytes& passphrase, KeySlotCare care) {
  LuksHeader header = TRY(read_luks_header(area));
  std::vector<size_t> matching;
  for (size_t i = 0; i < kLuksSlots; ++i)
    if (TRY(open_slot(area, header, header.slots[i], passphrase))) matching.push_back(i);
  if (matching.empty()) return invalid("No keyslots match given (old) password for erase operation");
  if (care != KeySlotCare::kForce && matching.size() == header.active_slots()) {
    return invalid(
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data in "
        "the image irreversibly - refusing operation");
  }
  for (const size_t slot : matching) TRY(erase(area, header, slot));
  return {};
}

}  // namespace varve::crypto
