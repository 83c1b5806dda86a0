// A device whose bytes are encrypted in the device below it, sector by sector at the same place: what a qcow2 image's
// data clusters are read and written through. The sector's number is its offset in the device below divided by 512,
// or, where the format counts from elsewhere, what the caller of read_numbered() and its like says.
//
// As BlockDevice says, but:
//  - Bytes behind the end read as what zeroes decrypt to, as QEMU shows a data cluster that lies there. So the whole
//    sectors of a file that was cut off, or of a hole, read as noise, and nothing is known to be zero.
//  - discard() passes through: what was discarded reads as noise.
//  - Writes that begin or end within a sector read it, change it and write it: one at the end of a file that ends
//    within a sector completes that sector.
#pragma once

#include <functional>
#include <memory>
#include <shared_mutex>

#include "crypto/sector_cipher.h"
#include "io/block_device.h"

namespace varve::crypto {

class EncryptedDevice final : public BlockDevice {
 public:
  EncryptedDevice(std::shared_ptr<BlockDevice> inner, std::unique_ptr<SectorCipher> cipher)
      : inner_(std::move(inner)), cipher_(std::move(cipher)) {}

  // The byte at `offset` of the device below is byte `counted` of what the sectors are numbered by; the two are equal
  // modulo 512.
  Result<void> read_numbered(uint64_t offset, uint64_t counted, std::span<std::byte> buffer);
  Result<void> write_numbered(uint64_t offset, uint64_t counted, std::span<const std::byte> data);
  Result<void> write_zeroes_numbered(uint64_t offset, uint64_t counted, uint64_t length);

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    return read_numbered(offset, offset, buffer);
  }
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    return write_numbered(offset, offset, data);
  }
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode /*mode*/) override {  // encrypted zeroes
    return write_zeroes_numbered(offset, offset, length);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return inner_->discard(offset, length); }
  Result<void> flush() override { return inner_->flush(); }
  void start_write_back(uint64_t offset, uint64_t length) override { inner_->start_write_back(offset, length); }
  Result<uint64_t> size() override { return inner_->size(); }
  Result<void> resize(uint64_t new_size) override { return inner_->resize(new_size); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;  // all data
  DeviceCapabilities capabilities() const override;
  const std::string& name() const override { return inner_->name(); }

 private:
  // `shift` is what has to be added to an offset, modulo 2^64, to get what sectors are numbered by.
  Result<void> read_sectors(uint64_t offset, uint64_t shift, std::span<std::byte> buffer);
  // `fill(buffer, at)` fills whole sectors with what shall be at offset `at`, encrypted.
  Result<void> write_sectors(uint64_t offset, uint64_t length,
                             const std::function<Result<void>(std::span<std::byte>, uint64_t)>& fill);
  Result<void> change_sector(uint64_t offset, uint64_t shift, std::span<const std::byte> data);

  std::shared_ptr<BlockDevice> inner_;
  std::unique_ptr<SectorCipher> cipher_;
  // Held exclusively while a sector is read, changed and written, shared by readers: with CBC, every byte behind a
  // change is another one on disk.
  std::shared_mutex partial_lock_;
};

}  // namespace varve::crypto
