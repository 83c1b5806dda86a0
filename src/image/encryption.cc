#include "image/encryption.h"

#include <fmt/format.h>

#include <algorithm>

#include "crypto/luks_volume.h"
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

namespace {

// The key is the beginning of the passphrase, or the passphrase and zeroes (QEMU, "qcow" block encryption).
Result<std::unique_ptr<crypto::SectorCipher>> old_aes_cipher(const crypto::SecretBytes& passphrase) {
  const crypto::CipherSpec spec{crypto::CipherAlgorithm::kAes128, crypto::CipherMode::kCbc,
                                crypto::IvGenerator::kPlain64};
  crypto::SecretBytes key(spec.key_bytes());
  std::ranges::copy(passphrase.bytes().first(std::min(passphrase.size(), key.size())), key.bytes().begin());
  return crypto::SectorCipher::make(spec, key.bytes());
}

}  // namespace

Result<std::shared_ptr<crypto::EncryptedDevice>> open_encrypted(BlockDevice& file, const qcow2::Header& header,
                                                                const crypto::SecretBytes& passphrase,
                                                                std::shared_ptr<BlockDevice> below) {
  const auto open = [&]() -> Result<std::shared_ptr<crypto::EncryptedDevice>> {
    if (header.crypt_method == qcow2::CryptMethod::kAes)
      return std::make_shared<crypto::EncryptedDevice>(std::move(below), TRY(old_aes_cipher(passphrase)));
    const crypto::LuksArea area = TRY(qcow2::luks_area(file, header));
    const crypto::LuksHeader luks = TRY(crypto::read_luks_header(area));
    const crypto::SecretBytes key = TRY(crypto::unlock(area, luks, passphrase));
    auto cipher = TRY(crypto::SectorCipher::make(luks.cipher, key.bytes()));
    return std::make_shared<crypto::EncryptedDevice>(std::move(below), std::move(cipher));
  };
  auto opened = open();
  if (!opened && opened.error().path.empty()) {
    opened.error().path = file.name();
    opened.error().message.insert(0, file.name() + ": ");
  }
  return opened;
}

}  // namespace varve::image
