// Disks that fail, for tests: a FaultDevice is a disk in memory that records every call, and fails where it is told to.
// Several of them under one FaultControl share one clock, so that an operation on two disks can be cut at any moment.
//
//   auto control = std::make_shared<FaultControl>();
//   auto disk = std::make_shared<FaultDevice>(prepared.clone(), control);
//   run(disk);                                                // once, undisturbed
//   for (uint64_t n = 0; n < control->calls(kOpMutations); ++n) …  // again, with control->inject({.at = n}) or
//   cut_power_at(n)
//
// What a disk may hold after the power failed at any moment of the recorded run: for_each_crash_state in
// io/crash_states.h. What each kind of failure leaves in the program's own view of the disk: FaultDevice::disk().
//
// Threads: calls on one control's devices are serialised.
#pragma once

#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "io/block_device.h"
#include "io/memory_device.h"

namespace varve {

enum OperationKind : unsigned {
  kOpRead = 1u << 0,
  kOpWrite = 1u << 1,
  kOpWriteZeroes = 1u << 2,
  kOpDiscard = 1u << 3,
  kOpResize = 1u << 4,
  kOpFlush = 1u << 5,
};
constexpr unsigned kOpMutations = kOpWrite | kOpWriteZeroes | kOpDiscard | kOpResize | kOpFlush;
constexpr unsigned kOpAny = kOpRead | kOpMutations;

// A completed call that changed the disk, or made it durable.
struct DiskOperation {
  OperationKind kind = kOpWrite;
  uint64_t offset = 0;
  uint64_t length = 0;  // kOpResize: the new size
  std::vector<std::byte> data;
  ZeroMode mode = ZeroMode::kMayUnmap;

  Result<void> apply_to(BlockDevice& device) const;
};

// A call that fails, from the `at`-th (counted from 0) of the chosen kinds on.
struct Fault {
  uint64_t at = 0;
  unsigned kinds = kOpMutations;
  int error = EIO;         // or ENOSPC, …
  bool once = false;       // else all later calls of these kinds fail too
  bool half_done = false;  // a failing write leaves the first half of its sectors written, as a full disk does
};

class FaultControl {
 public:
  // Calls of these kinds so far, failed ones included.
  uint64_t calls(unsigned kinds) const;
  // Counts from now on. Replaces an earlier fault.
  void inject(Fault fault);
  // The n-th mutation from now on and every call after it, reads too, fail: nothing reaches the disk any more.
  void cut_power_at(uint64_t n);
  // No fault, power on. (A device whose flush failed stays unwritable.)
  void clear_fault();

  // Notes that something outside the disks became durable at this moment of the run, for instance a journal record.
  void mark();
  // Forgets what was recorded and counted: the run begins with what the disks hold now.
  void start_over();

  // One disk's part of the recorded run. `sequences[i]` is the number of operations, on any disk, before log[i].
  struct DiskRecord {
    std::string name;
    std::unique_ptr<MemoryDevice> initial;
    std::vector<DiskOperation> log;
    std::vector<uint64_t> sequences;
  };
  // In the order in which the devices were made. Not while calls are under way.
  const std::vector<std::shared_ptr<const DiskRecord>>& records() const { return records_view_; }
  // For every mark() the number of operations before it.
  const std::vector<uint64_t>& marks() const { return marks_; }
  uint64_t recorded_operations() const { return sequence_; }

 private:
  friend class FaultDevice;
  struct Verdict {
    int error = 0;  // 0: go ahead
    bool half_done = false;
  };
  // All with mutex_ held.
  Verdict admit(OperationKind kind);
  void record(DiskRecord& record, DiskOperation operation);

  mutable std::mutex mutex_;
  uint64_t counts_[6] = {};
  Fault fault_;
  bool fault_armed_ = false;
  uint64_t fault_calls_ = 0;  // calls of fault_.kinds since it was injected
  bool cut_power_ = false;    // the fault is a power cut
  bool power_is_off_ = false;
  uint64_t sequence_ = 0;
  std::vector<uint64_t> marks_;
  std::vector<std::shared_ptr<DiskRecord>> records_;
  std::vector<std::shared_ptr<const DiskRecord>> records_view_;
  std::vector<std::shared_ptr<MemoryDevice>> disks_;
};

class FaultDevice final : public BlockDevice {
 public:
  explicit FaultDevice(std::unique_ptr<MemoryDevice> disk,
                       std::shared_ptr<FaultControl> control = std::make_shared<FaultControl>());

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override;
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;
  DeviceCapabilities capabilities() const override { return disk_->capabilities(); }
  const std::string& name() const override { return disk_->name(); }

  FaultControl& control() { return *control_; }
  // What the program sees: every completed call, flushed or not. To be read beside the faults.
  MemoryDevice& disk() { return *disk_; }

 private:
  Result<void> change(DiskOperation operation);
  Error injected(int error, const char* doing, uint64_t offset, uint64_t length) const;

  std::shared_ptr<MemoryDevice> disk_;
  std::shared_ptr<FaultControl> control_;
  std::shared_ptr<FaultControl::DiskRecord> record_;
  bool flush_failed_ = false;
};

}  // namespace varve
