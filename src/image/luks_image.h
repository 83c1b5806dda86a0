// An image of QEMU's format "luks", which is LUKS itself: the header with its key slots (crypto/luks_header.h), and
// behind it, from the payload offset on, the guest's disk, encrypted. It knows no holes: what was never written, in a
// new image or where one has grown, reads as noise, as with QEMU.
#pragma once

#include <memory>

#include "crypto/encrypted_device.h"
#include "crypto/luks_volume.h"
#include "image/raw_image.h"

namespace varve::image {

class LuksImage final : public BlockDevice {
 public:
  // With a passphrase the disk can be read and written; kPermission where no slot opens with it. Without one only the
  // header is looked at.
  static Result<std::shared_ptr<LuksImage>> open(const std::shared_ptr<BlockDevice>& file,
                                                 const crypto::SecretBytes* passphrase);

  const crypto::LuksHeader& header() const { return header_; }  // as it was when the image was opened
  // Where the key slots are; the image must outlive it.
  Result<crypto::LuksArea> area();

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t /*offset*/, uint64_t /*length*/) override { return {}; }  // it would leave noise
  Result<void> flush() override { return file_->flush(); }
  // The size of the file that holds a disk of this size.
  Result<uint64_t> file_size_for(uint64_t disk_size) const;
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;  // all data
  DeviceCapabilities capabilities() const override;
  const std::string& name() const override { return file_->name(); }

 private:
  LuksImage(std::shared_ptr<BlockDevice> file, crypto::LuksHeader header)
      : file_(std::move(file)), header_(std::move(header)) {}
  Result<void> check_unlocked() const;

  std::shared_ptr<BlockDevice> file_;
  crypto::LuksHeader header_;
  std::unique_ptr<crypto::EncryptedDevice> disk_;  // over the whole file; null without the key
};

}  // namespace varve::image
