// A snapshot that may go while it is read: what was read counts only if it is there afterwards (qcow2/point_watch.h).
#pragma once

#include "io/block_device.h"
#include "qcow2/point_watch.h"

namespace varve::image {

class WatchedDevice final : public BlockDevice {
 public:
  WatchedDevice(BlockDevice& snapshot, qcow2::PointWatch& watch) : snapshot_(snapshot), watch_(watch) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    Result<void> read = snapshot_.read_at(offset, buffer);
    // Also where it failed: tables that are gone may look like damage.
    TRY(watch_.check(offset, buffer.size()));
    return read;
  }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    auto extents = snapshot_.extents(offset, length);
    TRY(watch_.check(offset, length));
    return extents;
  }
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    return snapshot_.write_at(offset, data);
  }
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return snapshot_.write_zeroes(offset, length, mode);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return snapshot_.discard(offset, length); }
  Result<void> flush() override { return snapshot_.flush(); }
  Result<uint64_t> size() override { return snapshot_.size(); }
  Result<void> resize(uint64_t new_size) override { return snapshot_.resize(new_size); }
  DeviceCapabilities capabilities() const override { return snapshot_.capabilities(); }
  const std::string& name() const override { return snapshot_.name(); }

 private:
  BlockDevice& snapshot_;
  qcow2::PointWatch& watch_;
};

}  // namespace varve::image
