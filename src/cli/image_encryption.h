// -o encrypt.*: what a new image's encryption shall be, in QEMU's words.
#pragma once

#include <optional>
#include <string>

#include "cli/image_options.h"
#include "cli/image_source.h"
#include "crypto/luks_volume.h"

namespace varve::cli {

struct EncryptionOptions {
  crypto::LuksFormat format;
  std::optional<std::string> key_secret;  // the id of an object
};

// Nothing where none is asked for. kInvalidArgument for values that nobody knows; kUnsupported for QEMU's old AES
// method and for ciphers that only QEMU has.
Result<std::optional<EncryptionOptions>> encryption_options(const ImageOptions& options);

// The passphrase that they name.
Result<std::shared_ptr<const crypto::SecretBytes>> passphrase_of(const EncryptionOptions& encryption,
                                                                 const ImageObjects& objects);

}  // namespace varve::cli
