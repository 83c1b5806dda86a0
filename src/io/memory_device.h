// A BlockDevice in memory: sparse, growable, for tests and for building small images before they touch a disk.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "io/block_device.h"

namespace varve {

class MemoryDevice final : public BlockDevice {
 public:
  explicit MemoryDevice(std::string name = "memory", uint64_t size = 0) : name_(std::move(name)), size_(size) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;
  DeviceCapabilities capabilities() const override { return {true, true, true, true, true}; }
  const std::string& name() const override { return name_; }

  // An independent copy with the same contents.
  std::unique_ptr<MemoryDevice> clone() const;

 private:
  void zero(uint64_t offset, uint64_t length, bool keep_pages);
  std::byte* page(uint64_t index);

  static constexpr uint64_t kPage = 4096;
  mutable std::mutex mutex_;
  std::string name_;
  uint64_t size_;
  std::map<uint64_t, std::unique_ptr<std::byte[]>> pages_;  // page index -> kPage bytes; absent: zeroes
};

}  // namespace varve
