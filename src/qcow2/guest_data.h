// Where the guest's data clusters lie: the image file, an external data file, or a device that encrypts what is in one
// of these. Every byte is named by both of its places, in that device and on the guest's disk: LUKS numbers the sectors
// that it encrypts by the first, QEMU's old AES method by the second.
#pragma once

#include "crypto/encrypted_device.h"
#include "qcow2/header.h"

namespace varve::qcow2 {

class GuestData {
 public:
  // `encrypted` is `device`, or null where nothing is encrypted; both outlive the object.
  GuestData(BlockDevice& device, crypto::EncryptedDevice* encrypted, CryptMethod method)
      : device_(device), encrypted_(encrypted), by_guest_(method == CryptMethod::kAes) {}

  // Behind the end of the device: zeroes; or, where it encrypts, what it makes of them.
  Result<void> read(uint64_t host, uint64_t guest, std::span<std::byte> buffer) const;
  Result<void> write(uint64_t host, uint64_t guest, std::span<const std::byte> data) const;
  Result<void> write_zeroes(uint64_t host, uint64_t guest, uint64_t length, ZeroMode mode) const;

  BlockDevice& device() const { return device_; }

 private:
  uint64_t counted(uint64_t host, uint64_t guest) const { return by_guest_ ? guest : host; }

  BlockDevice& device_;
  crypto::EncryptedDevice* encrypted_;
  bool by_guest_;
};

}  // namespace varve::qcow2
