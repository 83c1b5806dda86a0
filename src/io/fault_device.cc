#include "io/fault_device.h"

#include <fmt/format.h>

#include <bit>
#include <utility>

#include "base/checked.h"
#include "io/sector.h"

namespace varve {
namespace {

const char* doing(OperationKind kind) {
  switch (kind) {
    case kOpRead:
      return "read";
    case kOpWrite:
      return "write";
    case kOpWriteZeroes:
      return "write zeroes to";
    case kOpDiscard:
      return "discard";
    case kOpResize:
      return "resize";
    case kOpFlush:
      return "flush";
  }
  return "use";
}

}  // namespace

Result<void> DiskOperation::apply_to(BlockDevice& device) const {
  switch (kind) {
    case kOpWrite:
      return device.write_at(offset, data);
    case kOpWriteZeroes:
      return device.write_zeroes(offset, length, mode);
    case kOpDiscard:
      return device.discard(offset, length);
    case kOpResize:
      return device.resize(length);
    case kOpFlush:
      return device.flush();
    case kOpRead:
      break;
  }
  return {};
}

uint64_t FaultControl::calls(unsigned kinds) const {
  const std::lock_guard guard(mutex_);
  uint64_t sum = 0;
  for (unsigned i = 0; i < std::size(counts_); ++i) {
    if ((kinds & (1u << i)) != 0) sum += counts_[i];
  }
  return sum;
}

void FaultControl::inject(Fault fault) {
  const std::lock_guard guard(mutex_);
  fault_ = fault;
  fault_armed_ = true;
  fault_calls_ = 0;
  cut_power_ = false;
}

void FaultControl::cut_power_at(uint64_t n) {
  inject({.at = n});
  const std::lock_guard guard(mutex_);
  cut_power_ = true;
}

void FaultControl::clear_fault() {
  const std::lock_guard guard(mutex_);
  fault_armed_ = false;
  cut_power_ = false;
  power_is_off_ = false;
}

void FaultControl::mark() {
  const std::lock_guard guard(mutex_);
  if (!power_is_off_) marks_.push_back(sequence_);
}

void FaultControl::start_over() {
  const std::lock_guard guard(mutex_);
  for (uint64_t& count : counts_) count = 0;
  fault_calls_ = 0;
  sequence_ = 0;
  marks_.clear();
  for (size_t i = 0; i < records_.size(); ++i) {
    records_[i]->initial = disks_[i]->clone();
    records_[i]->log.clear();
    records_[i]->sequences.clear();
  }
}

FaultControl::Verdict FaultControl::admit(OperationKind kind) {
  ++counts_[std::countr_zero(static_cast<unsigned>(kind))];
  if (power_is_off_) return {.error = EIO};
  if (!fault_armed_ || (fault_.kinds & kind) == 0) return {};
  const uint64_t call = fault_calls_++;
  if (call < fault_.at || (fault_.once && call > fault_.at)) return {};
  power_is_off_ = cut_power_;
  return {.error = fault_.error, .half_done = fault_.half_done};
}

void FaultControl::record(DiskRecord& record, DiskOperation operation) {
  record.sequences.push_back(sequence_++);
  record.log.push_back(std::move(operation));
}

FaultDevice::FaultDevice(std::unique_ptr<MemoryDevice> disk, std::shared_ptr<FaultControl> control)
    : disk_(std::move(disk)), control_(std::move(control)), record_(std::make_shared<FaultControl::DiskRecord>()) {
  const std::lock_guard guard(control_->mutex_);
  record_->name = disk_->name();
  record_->initial = disk_->clone();
  control_->records_.push_back(record_);
  control_->records_view_.push_back(record_);
  control_->disks_.push_back(disk_);
}

Error FaultDevice::injected(int error, const char* what, uint64_t offset, uint64_t length) const {
  Error e =
      system_error(error, fmt::format("cannot {} {} bytes at offset {} of '{}'", what, length, offset, name()), name());
  e.offset = offset;
  return e;
}

Result<void> FaultDevice::read_at(uint64_t offset, std::span<std::byte> buffer) {
  const std::lock_guard guard(control_->mutex_);
  const auto verdict = control_->admit(kOpRead);
  if (verdict.error != 0) return injected(verdict.error, doing(kOpRead), offset, buffer.size());
  return disk_->read_at(offset, buffer);
}

Result<void> FaultDevice::change(DiskOperation operation) {
  const std::lock_guard guard(control_->mutex_);
  const auto verdict = control_->admit(operation.kind);
  if (flush_failed_) {
    Error e = make_error(ErrorKind::kIo,
                         fmt::format("cannot {} '{}': an earlier flush failed", doing(operation.kind), name()));
    e.path = name();
    return e;
  }
  if (verdict.error != 0) {
    Error e = injected(verdict.error, doing(operation.kind), operation.offset, operation.length);
    if (operation.kind == kOpFlush) flush_failed_ = true;
    const uint64_t sectors = sectors_of(operation.offset, operation.length);
    if (verdict.half_done && operation.kind == kOpWrite && sectors >= 2) {
      const ByteRange half = sector_part(operation.offset, operation.length, 0, sectors / 2);
      operation.length = half.length;
      operation.data.resize(half.length);
      TRY(operation.apply_to(*disk_));
      control_->record(*record_, std::move(operation));
    }
    return e;
  }
  TRY(operation.apply_to(*disk_));
  control_->record(*record_, std::move(operation));
  return {};
}

Result<void> FaultDevice::write_at(uint64_t offset, std::span<const std::byte> data) {
  return change({.kind = kOpWrite, .offset = offset, .length = data.size(), .data = {data.begin(), data.end()}});
}

Result<void> FaultDevice::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  return change({.kind = kOpWriteZeroes, .offset = offset, .length = length, .data = {}, .mode = mode});
}

Result<void> FaultDevice::discard(uint64_t offset, uint64_t length) {
  return change({.kind = kOpDiscard, .offset = offset, .length = length, .data = {}});
}

Result<void> FaultDevice::resize(uint64_t new_size) {
  return change({.kind = kOpResize, .offset = 0, .length = new_size, .data = {}});
}

Result<void> FaultDevice::flush() {
  return change({.kind = kOpFlush, .data = {}});
}

Result<uint64_t> FaultDevice::size() {
  const std::lock_guard guard(control_->mutex_);
  if (control_->power_is_off_) return injected(EIO, "tell the size of", 0, 0);
  return disk_->size();
}

Result<std::vector<Extent>> FaultDevice::extents(uint64_t offset, uint64_t length) {
  const std::lock_guard guard(control_->mutex_);
  if (control_->power_is_off_) return injected(EIO, "map", offset, length);
  return disk_->extents(offset, length);
}

}  // namespace varve
