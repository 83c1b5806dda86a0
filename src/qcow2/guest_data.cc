#include "qcow2/guest_data.h"

#include "qcow2/padded_read.h"

namespace varve::qcow2 {

// A data cluster may lie (partly) behind the end of the file: preallocated images end early.
Result<void> GuestData::read(uint64_t host, uint64_t guest, std::span<std::byte> buffer) const {
  if (encrypted_ == nullptr) return read_padded(device_, host, buffer);
  return encrypted_->read_numbered(host, counted(host, guest), buffer);
}

Result<void> GuestData::write(uint64_t host, uint64_t guest, std::span<const std::byte> data) const {
  if (encrypted_ == nullptr) return device_.write_at(host, data);
  return encrypted_->write_numbered(host, counted(host, guest), data);
}

Result<void> GuestData::write_zeroes(uint64_t host, uint64_t guest, uint64_t length, ZeroMode mode) const {
  if (encrypted_ == nullptr) return device_.write_zeroes(host, length, mode);
  return encrypted_->write_zeroes_numbered(host, counted(host, guest), length);
}

}  // namespace varve::qcow2
