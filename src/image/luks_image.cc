#include "image/luks_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/checked.h"
#include "qcow2/padded_read.h"

namespace varve::image {

Result<std::shared_ptr<LuksImage>> LuksImage::open(const std::shared_ptr<BlockDevice>& file,
                                                   const crypto::SecretBytes* passphrase) {
  std::array<std::byte, crypto::kLuksHeaderBytes> bytes{};
  TRY(qcow2::read_padded(*file, 0, bytes));
  crypto::LuksHeader header = TRY(crypto::parse_luks_header(bytes));
  std::shared_ptr<LuksImage> image(new LuksImage(file, std::move(header)));
  if (passphrase != nullptr) {
    const crypto::SecretBytes key = TRY(crypto::unlock(TRY(image->area()), image->header_, *passphrase));
    auto cipher = TRY(crypto::SectorCipher::make(image->header_.cipher, key.bytes()));
    image->disk_ = std::make_unique<crypto::EncryptedDevice>(std::make_shared<RawImage>(file), std::move(cipher));
  }
  // Of a file that ends within its header nobody can tell how large the disk is.
  if (TRY(file->size()) < image->header_.payload_offset)
    return make_error(ErrorKind::kCorrupt, "Could not refresh total sector count: Input/output error")
        .with_note(
            fmt::format("the file ends before its LUKS header does, at {} bytes", image->header_.payload_offset));
  return image;
}

Result<crypto::LuksArea> LuksImage::area() {
  return crypto::LuksArea{file_.get(), 0, TRY(file_->size())};
}

Result<void> LuksImage::check_unlocked() const {
  if (disk_ != nullptr) return {};
  return make_error(ErrorKind::kPermission, fmt::format("{}: Parameter 'key-secret' is required for cipher", name()));
}

Result<uint64_t> LuksImage::size() {
  const uint64_t file_size = align_up(TRY(file_->size()), kSectorSize);
  return file_size - std::min(file_size, header_.payload_offset);
}

Result<void> LuksImage::read_at(uint64_t offset, std::span<std::byte> buffer) {
  TRY(check_unlocked());
  const uint64_t end = TRY(size());
  if (offset > end || buffer.size() > end - offset) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("{}: bytes {} to {} lie beyond the end of the disk",
                                                               name(), offset, offset + buffer.size()));
  }
  return disk_->read_numbered(header_.payload_offset + offset, offset, buffer);
}

Result<void> LuksImage::write_at(uint64_t offset, std::span<const std::byte> data) {
  TRY(check_unlocked());
  return disk_->write_numbered(header_.payload_offset + offset, offset, data);
}

Result<void> LuksImage::write_zeroes(uint64_t offset, uint64_t length, ZeroMode /*mode*/) {
  TRY(check_unlocked());
  return disk_->write_zeroes_numbered(header_.payload_offset + offset, offset, length);
}

Result<uint64_t> LuksImage::file_size_for(uint64_t disk_size) const {
  const auto file_size = checked_add(header_.payload_offset, disk_size);
  if (file_size && *file_size <= INT64_MAX) return *file_size;
  return make_error(ErrorKind::kInvalidArgument, "The requested file size is too large");
}

Result<void> LuksImage::resize(uint64_t new_size) {
  return file_->resize(TRY(file_size_for(new_size)));
}

Result<std::vector<Extent>> LuksImage::extents(uint64_t offset, uint64_t length) {
  const uint64_t end = TRY(size());
  if (offset >= end || length == 0) return std::vector<Extent>{};
  return std::vector<Extent>{{offset, std::min(length, end - offset), ExtentKind::kData}};
}

DeviceCapabilities LuksImage::capabilities() const {
  DeviceCapabilities capabilities = file_->capabilities();
  capabilities.has_extents = false;
  capabilities.grows_by_zeroes = false;
  return capabilities;
}

}  // namespace varve::image
