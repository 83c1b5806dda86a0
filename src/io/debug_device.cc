#include "io/debug_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/checked.h"

namespace varve {

namespace {

// What QEMU writes at most at a time where zeroes have to be written as data.
constexpr uint64_t kMaxZeroBytes = uint64_t{16} << 20;
constexpr uint64_t kNoLimit = uint64_t{1} << 30;

uint64_t or_no_limit(uint64_t limit, uint64_t alignment) {
  return limit != 0 ? limit : std::max(align_down(kNoLimit, alignment), alignment);
}

// Others are for the device below to refuse.
bool can_exist(uint64_t offset, uint64_t length) {
  return offset <= INT64_MAX && length <= INT64_MAX - offset;
}

// How much of what is left is the next piece of a request, on a device that likes whole units: up to the next unit,
// then whole units, then the rest.
uint64_t next_piece(uint64_t at, uint64_t left, uint64_t unit, uint64_t most) {
  if (const uint64_t head = at % unit; head != 0) return std::min(left, unit - head);
  return left > unit ? std::min(left - left % unit, most) : left;
}

const char* doing(RequestKind kind) {
  switch (kind) {
    case kRequestRead:
      return "read";
    case kRequestWrite:
      return "write";
    case kRequestWriteZeroes:
      return "zero";
    case kRequestDiscard:
      return "discard";
    case kRequestFlush:
      return "flush";
    case kRequestBlockStatus:
      return "map";
  }
  return "use";
}

}  // namespace

DebugDevice::DebugDevice(std::shared_ptr<BlockDevice> below, DebugOptions options)
    : below_(std::move(below)),
      limits_(options.limits),
      errors_(std::move(options.errors)),
      states_(std::move(options.states)),
      used_up_(errors_.size()) {
  report(DebugEvent::kNone);
}

void DebugDevice::report(DebugEvent event) {
  const std::lock_guard guard(rules_lock_);
  const auto applies = [&](const auto& rule) {
    return rule.event == event && (rule.state == 0 || rule.state == state_);
  };
  bool replaced = false;
  for (size_t i = 0; i < errors_.size(); ++i) {
    if (used_up_[i] || !applies(errors_[i])) continue;
    if (!std::exchange(replaced, true)) in_force_.clear();
    in_force_.push_back(i);
  }
  const auto change = std::ranges::find_if(states_, applies);
  if (change != states_.end()) state_ = change->new_state;
}

Result<void> DebugDevice::admit(RequestKind kind, uint64_t offset, uint64_t length) {
  const std::lock_guard guard(rules_lock_);
  const auto found = std::ranges::find_if(in_force_, [&](size_t i) {
    const ErrorRule& rule = errors_[i];
    const bool hit = !rule.offset || (*rule.offset >= offset && *rule.offset - offset < length);
    return hit && (rule.kinds & kind) != 0;
  });
  if (found == in_force_.end()) return {};
  const ErrorRule& rule = errors_[*found];
  if (rule.error == 0) return {};
  Error error = system_error(rule.error,
                             fmt::format("cannot {} {} bytes at offset {} of '{}', as blkdebug is told to fail",
                                         doing(kind), length, offset, name()),
                             name());
  error.offset = offset;
  if (rule.once) {
    used_up_[*found] = true;
    in_force_.erase(found);
  }
  return error;
}

// Writing a part of a block means reading the rest of it first.
Result<void> DebugDevice::admit_edges(uint64_t offset, uint64_t length) {
  const uint64_t block = alignment();
  const uint64_t begin = align_down(offset, block);
  const uint64_t end = align_up(offset + length, block);
  const bool head = begin != offset;
  const bool tail = end != offset + length;
  if (!head && !tail) return {};
  const bool together = end - begin == block || (head && tail && end - begin == 2 * block);
  if (head || together) {
    if (head) report(DebugEvent::kPwritevRmwHead);
    if (together && tail) report(DebugEvent::kPwritevRmwTail);
    TRY(admit(kRequestRead, begin, together ? end - begin : block));
    if (head) report(DebugEvent::kPwritevRmwAfterHead);
    if (together && tail) report(DebugEvent::kPwritevRmwAfterTail);
    if (together) return {};
  }
  if (!tail) return {};
  report(DebugEvent::kPwritevRmwTail);
  TRY(admit(kRequestRead, end - block, block));
  report(DebugEvent::kPwritevRmwAfterTail);
  return {};
}

Result<void> DebugDevice::check_flushed() const {
  if (!flush_failed_) return {};
  Error error = make_error(ErrorKind::kIo, fmt::format("cannot change '{}': an earlier flush failed", name()));
  error.path = name();
  return error;
}

Result<void> DebugDevice::read_at(uint64_t offset, std::span<std::byte> buffer) {
  if (!can_exist(offset, buffer.size())) return below_->read_at(offset, buffer);
  const uint64_t end = align_up(offset + buffer.size(), alignment());
  const uint64_t most = or_no_limit(limits_.max_transfer, alignment());
  for (uint64_t at = align_down(offset, alignment()); at < end; at += most)
    TRY(admit(kRequestRead, at, std::min(most, end - at)));
  return below_->read_at(offset, buffer);
}

Result<void> DebugDevice::write_at(uint64_t offset, std::span<const std::byte> data) {
  return write_in_turn(offset, data, [] {});
}

Result<void> DebugDevice::write_in_turn(uint64_t offset, std::span<const std::byte> data,
                                        const std::function<void()>& placed) {
  TRY(check_flushed());
  if (!can_exist(offset, data.size())) return below_->write_in_turn(offset, data, placed);
  TRY(admit_edges(offset, data.size()));
  report(DebugEvent::kPwritev);
  const uint64_t end = align_up(offset + data.size(), alignment());
  const uint64_t most = or_no_limit(limits_.max_transfer, alignment());
  for (uint64_t at = align_down(offset, alignment()); at < end; at += most) {
    const uint64_t length = std::min(most, end - at);
    TRY(admit(kRequestWrite, at, length));
    const uint64_t from = std::max(at, offset) - offset;
    const uint64_t to = std::min<uint64_t>(at + length - offset, data.size());
    const auto part = data.subspan(from, to - from);
    // Places are settled when the last part has its own.
    TRY(at + length == end ? below_->write_in_turn(offset + from, part, placed)
                           : below_->write_at(offset + from, part));
  }
  report(DebugEvent::kPwritevDone);
  return {};
}

Result<void> DebugDevice::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (length == 0) return {};
  TRY(check_flushed());
  if (!can_exist(offset, length)) return below_->write_zeroes(offset, length, mode);
  TRY(admit_edges(offset, length));
  report(DebugEvent::kPwritevZero);
  const uint64_t unit = std::max(limits_.write_zeroes_alignment, alignment());
  const uint64_t most = or_no_limit(limits_.max_write_zeroes, unit);
  const uint64_t most_bytes = std::min(or_no_limit(limits_.max_transfer, alignment()), kMaxZeroBytes);
  const uint64_t end = offset + length;
  uint64_t at = offset;
  while (at < end) {
    uint64_t piece = next_piece(at, end - at, unit, most);
    const bool as_data = piece < unit;  // edges of the units that the device is said to like
    if (as_data) piece = std::min(piece, most_bytes);
    const uint64_t begin = align_down(at, alignment());
    TRY(admit(as_data ? kRequestWrite : kRequestWriteZeroes, begin, align_up(at + piece, alignment()) - begin));
    TRY(below_->write_zeroes(at, piece, mode));
    at += piece;
  }
  report(DebugEvent::kPwritevDone);
  return {};
}

Result<void> DebugDevice::discard(uint64_t offset, uint64_t length) {
  TRY(check_flushed());
  if (!can_exist(offset, length)) return below_->discard(offset, length);
  const uint64_t unit = std::max(limits_.discard_alignment, alignment());
  const uint64_t most = or_no_limit(limits_.max_discard, unit);
  const uint64_t end = offset + length;
  for (uint64_t at = offset; at < end;) {
    const uint64_t piece = next_piece(at, end - at, unit, most);
    // What is less than a block QEMU leaves as it is; here nothing stale may stay (io/block_device.h).
    if (piece >= alignment()) TRY(admit(kRequestDiscard, at, piece));
    TRY(below_->discard(at, piece));
    at += piece;
  }
  return {};
}

Result<void> DebugDevice::flush() {
  TRY(check_flushed());
  report(DebugEvent::kFlushToOs);
  report(DebugEvent::kFlushToDisk);
  if (Result<void> admitted = admit(kRequestFlush, 0, 0); !admitted) {
    flush_failed_ = true;
    return admitted;
  }
  return below_->flush();
}

Result<void> DebugDevice::resize(uint64_t new_size) {
  TRY(check_flushed());
  return below_->resize(new_size);
}

Result<void> DebugDevice::admit_block_status(uint64_t offset, uint64_t length) {
  if (length == 0 || !can_exist(offset, length)) return {};
  const uint64_t begin = align_down(offset, alignment());
  return admit(kRequestBlockStatus, begin, align_up(offset + length, alignment()) - begin);
}

Result<std::vector<Extent>> DebugDevice::extents(uint64_t offset, uint64_t length) {
  TRY(admit_block_status(offset, length));
  return below_->extents(offset, length);
}

Result<void> DebugGuestData::read_at(uint64_t offset, std::span<std::byte> buffer) {
  device_->report(DebugEvent::kReadAio);
  return device_->read_at(offset, buffer);
}

Result<void> DebugGuestData::write_at(uint64_t offset, std::span<const std::byte> data) {
  device_->report(DebugEvent::kWriteAio);
  return device_->write_at(offset, data);
}

}  // namespace varve
