#include "cli/null_device.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace varve::cli {

Result<NullDevice> NullDevice::make(uint64_t size) {
  NullDevice device(::memfd_create("null-co", MFD_CLOEXEC));
  if (device.fd_ >= 0 && size <= INT64_MAX && ::ftruncate(device.fd_, static_cast<off_t>(size)) == 0) return device;
  Error error = make_error(ErrorKind::kIo, fmt::format("a null device of {} bytes can't be made", size));
  error.sys_errno = size > INT64_MAX ? EFBIG : errno;
  return error;
}

NullDevice::NullDevice(NullDevice&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

NullDevice::~NullDevice() {
  if (fd_ >= 0) ::close(fd_);
}

std::string NullDevice::path() const {
  return fmt::format("/proc/self/fd/{}", fd_);
}

}  // namespace varve::cli
