// A device that shows what would become of another one: what is written to it is kept in memory and seen by its own
// readers only, and it counts the space that the real writes would take. Plans (`--dry-run`) and questions of space run
// the very code that does the work on such a device; memory is as much as is written, runs of zeroes apart.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "io/block_device.h"

namespace varve {

struct RehearsedChanges {
  uint64_t size_before = 0;
  uint64_t size_after = 0;
  uint64_t written_bytes = 0;  // of the file, each once
  // The most space that the file would at any moment have had beyond what it has now, in bytes. Blocks that are only
  // reserved count as holes: see surplus_bytes() of io/free_space.h.
  uint64_t most_new_bytes = 0;
};

class RehearsalDevice final : public BlockDevice {
 public:
  // `original` is only read. Nobody else may change it meanwhile.
  static Result<std::unique_ptr<RehearsalDevice>> over(std::unique_ptr<BlockDevice> original);

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;
  DeviceCapabilities capabilities() const override { return {true, true, true, true, true}; }
  const std::string& name() const override { return original_->name(); }

  RehearsedChanges changes() const;

 private:
  enum class Kind : uint8_t { kBytes, kZeroes, kHole };
  struct Piece {
    uint64_t end = 0;
    Kind kind = Kind::kHole;
    std::vector<std::byte> bytes;  // kBytes: the piece's own
  };

  RehearsalDevice(std::unique_ptr<BlockDevice> original, uint64_t size)
      : original_(std::move(original)), original_size_(size), size_(size) {}

  // The pieces that begin or end inside of [begin, end) are cut there, and those within it removed.
  void clear(uint64_t begin, uint64_t end);
  void cut_at(uint64_t offset);
  void put(uint64_t begin, Piece piece);
  Result<std::vector<Extent>> original_extents(uint64_t begin, uint64_t end) const;
  Result<std::vector<Extent>> extents_now(uint64_t begin, uint64_t end) const;
  Result<uint64_t> occupied(uint64_t begin, uint64_t end) const;

  std::unique_ptr<BlockDevice> original_;
  uint64_t original_size_;
  mutable std::mutex mutex_;
  uint64_t size_;
  std::map<uint64_t, Piece> pieces_;  // by their beginning; the rest is the original's, or a hole behind its end
  int64_t new_bytes_ = 0;
  int64_t most_new_bytes_ = 0;
};

}  // namespace varve
