// A file of an export as its bytes, wherever they lie: one file, or deltas that stand on one another and on a file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/file_device.h"

namespace varve {

// Whole sectors, which is what QEMU's images consist of: the size of a delta's disk for a file of `bytes` bytes.
uint64_t in_sectors(uint64_t bytes);

// For reading only. Reads past its end give zeroes, as QEMU's do past the end of a backing file.
class ExportedFile final : public BlockDevice {
 public:
  // `layers`: top first, what they show clipped to `size` bytes. `files` are the files behind them.
  ExportedFile(std::vector<std::shared_ptr<BlockDevice>> layers, std::vector<std::shared_ptr<FileDevice>> files,
               uint64_t size)
      : layers_(std::move(layers)), files_(std::move(files)), size_(size) {}

  // What is read from now on comes from the disk, as far as the system lets anybody ask for that.
  void forget_cached() const;

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t, std::span<const std::byte>) override { return read_only(); }
  Result<void> write_zeroes(uint64_t, uint64_t, ZeroMode) override { return read_only(); }
  Result<void> discard(uint64_t, uint64_t) override { return read_only(); }
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override { return size_; }
  Result<void> resize(uint64_t) override { return read_only(); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;  // data and zeroes
  DeviceCapabilities capabilities() const override { return {.has_extents = true}; }
  const std::string& name() const override { return files_.front()->name(); }

 private:
  static Error read_only() { return make_error(ErrorKind::kPermission, "an export is only read"); }

  std::vector<std::shared_ptr<BlockDevice>> layers_;
  std::vector<std::shared_ptr<FileDevice>> files_;
  uint64_t size_;
};

}  // namespace varve
