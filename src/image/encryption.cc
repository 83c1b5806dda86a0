#include "image/encryption.h"

#include <fmt/format.h>

#include "crypto/encrypted_device.h"
#include "qcow2/luks_area.h"

namespace varve::image {

Result<void> check_encryption_format(const qcow2::Header& header, const Encryption& encryption) {
  if (!encryption.format) return {};
  if (header.crypt_method == qcow2::CryptMethod::kNone) {
    return make_error(
        ErrorKind::kInvalidArgument,
        fmt::format("No encryption in image header, but options specified format '{}'", *encryption.format));
  }
  const char* format = header.crypt_method == qcow2::CryptMethod::kAes ? "aes" : "luks";
  if (*encryption.format == format) return {};
  return make_error(
      ErrorKind::kInvalidArgument,
      fmt::format("Header reported '{}' encryption format but options specify '{}'", format, *encryption.format));
}

Result<std::shared_ptr<BlockDevice>> open_encrypted(BlockDevice& file, const qcow2::Header& header,
                                                    const crypto::SecretBytes& passphrase,
                                                    std::shared_ptr<BlockDevice> below) {
  const auto open = [&]() -> Result<std::shared_ptr<BlockDevice>> {
    const crypto::LuksArea area = TRY(qcow2::luks_area(file, header));
    const crypto::LuksHeader luks = TRY(crypto::read_luks_header(area));
    const crypto::SecretBytes key = TRY(crypto::unlock(area, luks, passphrase));
    auto cipher = TRY(crypto::SectorCipher::make(luks.cipher, key.bytes()));
    return std::shared_ptr<BlockDevice>(std::make_shared<crypto::EncryptedDevice>(std::move(below), std::move(cipher)));
  };
  auto opened = open();
  if (!opened && opened.error().path.empty()) {
    opened.error().path = file.name();
    opened.error().message.insert(0, file.name() + ": ");
  }
  return opened;
}

}  // namespace varve::image
