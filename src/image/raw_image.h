// A raw image as a guest sees it: whole sectors. A file whose size is no multiple of 512 reads as if zeroes filled its
// last sector, as under QEMU.
#pragma once

#include <memory>

#include "io/block_device.h"

namespace varve::image {

inline constexpr uint64_t kSectorSize = 512;

class RawImage final : public BlockDevice {
 public:
  // What extents() say of the rest of the last sector: that it is zeroes, or, where the file can be read in whole
  // sectors only, what they say of its beginning.
  enum class Tail : uint8_t { kZero, kAsBefore };
  explicit RawImage(std::shared_ptr<BlockDevice> file, Tail tail = Tail::kZero) : file_(std::move(file)), tail_(tail) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override { return file_->flush(); }
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override { return file_->resize(new_size); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;
  DeviceCapabilities capabilities() const override { return file_->capabilities(); }
  const std::string& name() const override { return file_->name(); }

 private:
  // How much of [offset, offset+length) the file itself holds.
  Result<uint64_t> inside(uint64_t offset, uint64_t length);

  std::shared_ptr<BlockDevice> file_;
  Tail tail_;
};

}  // namespace varve::image
