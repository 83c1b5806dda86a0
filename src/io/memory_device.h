// A BlockDevice in memory: sparse, growable, for tests and for building small images before they touch a disk. Copies
// share what neither of them has changed since, so that a test can afford tens of thousands of them.
#pragma once

#include <array>
#include <atomic>
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
  // The same for devices of equal size and contents, however they came about. Not for what outlives the process.
  uint64_t hash() const;

 private:
  static constexpr uint64_t kPage = 4096;
  struct Page {
    std::array<std::byte, kPage> bytes{};
    std::atomic<uint64_t> hash{0};  // of the bytes; 0: not known
  };
  struct Slot {
    std::shared_ptr<Page> page;
    bool shared = false;  // with a copy, now or once: it is not written to any more
  };

  void zero(uint64_t offset, uint64_t length, bool keep_pages);
  static std::byte* for_writing(Slot& slot);

  mutable std::mutex mutex_;
  std::string name_;
  uint64_t size_;
  mutable std::map<uint64_t, Slot> pages_;  // by page index; absent: zeroes. Behind the end there are only zeroes.
};

}  // namespace varve
