// Opening encrypted qcow2 images: the header's claim against the user's, and the device through which clusters are
// read.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "crypto/encrypted_device.h"
#include "crypto/secret_bytes.h"
#include "qcow2/image.h"

namespace varve::image {

// What the user says of an image's encryption.
struct Encryption {
  std::optional<std::string> format = std::nullopt;  // "luks", "aes"; an image with another one, or none, is refused
  std::shared_ptr<const crypto::SecretBytes> passphrase = nullptr;
};

// kInvalidArgument, in QEMU's words, where the user's format is not the header's.
Result<void> check_encryption_format(const qcow2::Header& header, const Encryption& encryption);

// Unlocks the LUKS header of `file`, or takes the passphrase itself for the key (QEMU's old AES method, where nothing
// tells a wrong one from the right one). The result reads and writes the guest's clusters, which are in `below`: `file`
// itself, or an external data file. kPermission for a wrong passphrase.
Result<std::shared_ptr<crypto::EncryptedDevice>> open_encrypted(BlockDevice& file, const qcow2::Header& header,
                                                                const crypto::SecretBytes& passphrase,
                                                                std::shared_ptr<BlockDevice> below);

}  // namespace varve::image
