// The keys of a LUKS header: made with a first passphrase, unlocked with one, and its slots filled and erased. The
// disk's own key is random and never changes; a slot holds it split (anti_forensic.h) and encrypted with a key derived
// from a passphrase. Messages are QEMU's.
#pragma once

#include <optional>

#include "crypto/luks_header.h"
#include "io/block_device.h"

namespace varve::crypto {

// Where a header lies: `length` bytes at `offset` of a device; for qcow2, what the crypto extension says. What a header
// names outside of it is kCorrupt.
struct LuksArea {
  BlockDevice* device = nullptr;
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct LuksFormat {
  CipherSpec cipher;
  HashAlgorithm hash = HashAlgorithm::kSha256;
  // How long a try of a passphrase shall take on this machine, in milliseconds. Not 0.
  uint64_t iteration_time_ms = 2000;
};

// The beginning of a new header, up to the first slot's key material; zeroes follow up to luks_header_area().
Result<std::vector<std::byte>> make_luks_header(const LuksFormat& format, const SecretBytes& passphrase);

Result<LuksHeader> read_luks_header(const LuksArea& area);

// The disk's key. kPermission where no slot opens with the passphrase.
Result<SecretBytes> unlock(const LuksArea& area, const LuksHeader& header, const SecretBytes& passphrase);

// What keeps a slot from being overwritten, the last one from being erased, or says that it is an error at all: not
// asked for with kForce.
enum class KeySlotCare : uint8_t { kRefuseLoss, kForce };

// Puts the disk's key into `slot` (without one: the first that is free) with a new passphrase. Key material, flush,
// header, flush: a crash leaves the slot empty.
Result<void> add_key_slot(const LuksArea& area, const SecretBytes& passphrase, const SecretBytes& new_passphrase,
                          std::optional<uint64_t> slot, uint64_t iteration_time_ms, KeySlotCare care);

// Erases `slot`; with a passphrase, only if it opens with that. Header, flush, then random bytes over the key material,
// flush: a crash leaves a slot that nobody can open any more.
Result<void> erase_key_slot(const LuksArea& area, uint64_t slot, const SecretBytes* passphrase, KeySlotCare care);
// Erases every slot that opens with the passphrase.
Result<void> erase_key_slots_of(const LuksArea& area, const SecretBytes& passphrase, KeySlotCare care);

}  // namespace varve::crypto
