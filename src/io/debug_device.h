// Errors on purpose, as QEMU's driver "blkdebug" makes them: a device over another one, whose requests fail where the
// user's rules say so. It stands between a file and its format, or over a format's disk (image/open.h), and is there
// for whoever wants to see what a program does with a disk that fails.
//
// A rule waits for an event and is in force from then on, until another event brings other rules; a state, changed by
// events too, decides which rules an event brings. The limits (alignment, longest requests) change nothing of what is
// stored: they say which stretches the rules see, as requests are widened and cut.
//
// Threads: the rules are under a lock, the requests themselves outside it.
#pragma once

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "io/block_device.h"

namespace varve {

enum class DebugEvent : uint8_t {
  kNever,    // one that is reported inside of QEMU's formats only: who waits for it waits in vain
  kNone,     // the device is opened
  kReadAio,  // guest data is read through the format above, or written
  kWriteAio,
  kFlushToOs,  // a flush begins
  kFlushToDisk,
  kPwritev,  // a write, or one of zeroes, begins and ends; before and after the edges of a misaligned one are read
  kPwritevZero,
  kPwritevDone,
  kPwritevRmwHead,
  kPwritevRmwAfterHead,
  kPwritevRmwTail,
  kPwritevRmwAfterTail,
};

enum RequestKind : unsigned {
  kRequestRead = 1u << 0,
  kRequestWrite = 1u << 1,
  kRequestWriteZeroes = 1u << 2,
  kRequestDiscard = 1u << 3,
  kRequestFlush = 1u << 4,
  kRequestBlockStatus = 1u << 5,  // extents()
};

struct ErrorRule {
  DebugEvent event = DebugEvent::kNone;
  uint64_t state = 0;  // in which the event counts; 0: in any
  unsigned kinds = kRequestRead | kRequestWrite | kRequestWriteZeroes | kRequestDiscard | kRequestFlush;
  int error = EIO;                                // 0: the request succeeds, whatever the rules behind this one say
  std::optional<uint64_t> offset = std::nullopt;  // only requests that contain this byte
  bool once = false;
};

struct StateRule {
  DebugEvent event = DebugEvent::kNone;
  uint64_t state = 0;
  uint64_t new_state = 0;
};

// Bytes; 0: no limit.
struct DebugLimits {
  uint64_t alignment = 0;  // a power of two
  uint64_t max_transfer = 0;
  uint64_t write_zeroes_alignment = 0;
  uint64_t max_write_zeroes = 0;
  uint64_t discard_alignment = 0;
  uint64_t max_discard = 0;
};

struct DebugOptions {
  std::vector<ErrorRule> errors;
  std::vector<StateRule> states;
  DebugLimits limits;
};

class DebugDevice final : public BlockDevice {
 public:
  DebugDevice(std::shared_ptr<BlockDevice> below, DebugOptions options);

  const std::shared_ptr<BlockDevice>& below() const { return below_; }
  void report(DebugEvent event);
  // What extents() would fail with for this range.
  Result<void> admit_block_status(uint64_t offset, uint64_t length);

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_in_turn(uint64_t offset, std::span<const std::byte> data,
                             const std::function<void()>& placed) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override;
  void start_write_back(uint64_t offset, uint64_t length) override { below_->start_write_back(offset, length); }
  Result<uint64_t> size() override { return below_->size(); }
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;
  DeviceCapabilities capabilities() const override { return below_->capabilities(); }
  const std::string& name() const override { return below_->name(); }

 private:
  uint64_t alignment() const { return limits_.alignment == 0 ? 1 : limits_.alignment; }
  Result<void> admit(RequestKind kind, uint64_t offset, uint64_t length);
  Result<void> admit_edges(uint64_t offset, uint64_t length);
  Result<void> check_flushed() const;

  std::shared_ptr<BlockDevice> below_;
  DebugLimits limits_;
  std::atomic<bool> flush_failed_ = false;

  std::mutex rules_lock_;
  std::vector<ErrorRule> errors_;
  std::vector<StateRule> states_;
  std::vector<size_t> in_force_;  // of errors_
  std::vector<bool> used_up_;     // errors_ that happen once, and have
  uint64_t state_ = 1;
};

// The device as a format's guest data goes through it: that is what kReadAio and kWriteAio report.
class DebugGuestData final : public BlockDevice {
 public:
  explicit DebugGuestData(std::shared_ptr<DebugDevice> device) : device_(std::move(device)) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return device_->write_zeroes(offset, length, mode);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return device_->discard(offset, length); }
  Result<void> flush() override { return device_->flush(); }
  void start_write_back(uint64_t offset, uint64_t length) override { device_->start_write_back(offset, length); }
  Result<uint64_t> size() override { return device_->size(); }
  Result<void> resize(uint64_t new_size) override { return device_->resize(new_size); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    return device_->extents(offset, length);
  }
  DeviceCapabilities capabilities() const override { return device_->capabilities(); }
  const std::string& name() const override { return device_->name(); }

 private:
  std::shared_ptr<DebugDevice> device_;
};

}  // namespace varve
