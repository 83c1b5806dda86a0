#include "image/create.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>

#include "base/checked.h"
#include "image/raw_image.h"
#include "io/file_device.h"

namespace varve::image {

namespace {

bool exists(const std::string& path) {
  struct stat st = {};
  return ::lstat(path.c_str(), &st) == 0;
}

Result<void> create_file(const std::string& path, LockRequest lock,
                         const std::function<Result<void>(FileDevice&)>& fill) {
  const bool was_there = exists(path);
  auto file = TRY(FileDevice::create(path, lock));
  Result<void> filled = fill(*file);
  if (!filled && !was_there) ::unlink(path.c_str());
  return filled;
}

}  // namespace

Result<void> create_raw(const std::string& path, uint64_t size) {
  return create_file(path, LockRequest::raw_writer(), [&](FileDevice& file) -> Result<void> {
    if (!file.is_block_device()) {
      TRY(file.resize(align_up(size, kSectorSize)));
      // As QEMU does: where nothing at all is allocated, O_DIRECT readers can't find out what alignment they need.
      const std::array<std::byte, 4096> zeroes{};
      return file.write_at(0, std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), align_up(size, kSectorSize))));
    }
    const uint64_t available = TRY(file.size());
    if (available >= size) return {};
    Error error = make_error(ErrorKind::kNoSpace, path + ": the device is smaller than the image");
    error.sys_errno = ENOSPC;
    return error;
  });
}

Result<void> create_qcow2(const std::string& path, const qcow2::CreateOptions& options) {
  return create_file(path, LockRequest::format_writer(),
                     [&](FileDevice& file) { return qcow2::Image::create(file, options); });
}

}  // namespace varve::image
