// -o encrypt.*: what a new image's encryption shall be, and what shall become of an old one's key slots, in QEMU's
// words. The format luks has the same options without "encrypt.".
#pragma once

#include <optional>
#include <string>

#include "cli/image_options.h"
#include "cli/image_source.h"
#include "crypto/luks_volume.h"

namespace varve::cli {

struct EncryptionOptions {
  std::optional<crypto::LuksFormat> luks;  // nothing: QEMU's old AES method
};

// What stands before the options' names: "encrypt." or nothing.
const char* encryption_prefix(image::Format format);

// Nothing where none is asked for; the format luks asks for it always. kInvalidArgument for values that nobody knows;
// kUnsupported for ciphers that only QEMU has.
Result<std::optional<EncryptionOptions>> encryption_options(const ImageOptions& options);

// The passphrase that they name.
Result<std::shared_ptr<const crypto::SecretBytes>> passphrase_of(const ImageOptions& options,
                                                                 const ImageObjects& objects);

// Puts what `options` ask for into what a qcow2 image is made from.
Result<void> add_encryption(const ImageOptions& options, const ImageObjects& objects, qcow2::CreateOptions& create);

// `amend -o encrypt.state=…`: fills and erases key slots in `area` of an image that is open for writing; `passphrase`
// opens it.
Result<void> amend_key_slots(const crypto::LuksArea& area, const ImageOptions& options, const ImageObjects& objects,
                             const crypto::SecretBytes& passphrase, crypto::KeySlotCare care);

}  // namespace varve::cli
