#include "image/create.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "image/raw_image.h"
#include "io/file_device.h"

namespace varve::image {

namespace {

bool exists(const std::string& path) {
  struct stat st = {};
  return ::lstat(path.c_str(), &st) == 0;
}

constexpr uint32_t kDefaultExtentSize = 1u << 20;

// Both are wishes: an empty file on another file system is none the worse.
void ask_file_system(FileDevice& file, const FileOptions& options) {
  if (options.nocow) {
    int flags = 0;
    if (::ioctl(file.fd(), FS_IOC_GETFLAGS, &flags) == 0) {
      flags |= FS_NOCOW_FL;
      (void)::ioctl(file.fd(), FS_IOC_SETFLAGS, &flags);
    }
  }
  struct fsxattr attributes = {};
  int result = ::ioctl(file.fd(), FS_IOC_FSGETXATTR, &attributes);
  if (result == 0) {
    attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
    attributes.fsx_extsize = static_cast<uint32_t>(options.extent_size_hint.value_or(kDefaultExtentSize));
    result = ::ioctl(file.fd(), FS_IOC_FSSETXATTR, &attributes);
  }
  if (result < 0 && options.warn && options.extent_size_hint.value_or(0) != 0)
    options.warn(std::string("Failed to set extent size hint: ") + std::strerror(errno));
}

Result<void> create_file(const std::string& path, LockRequest lock, const FileOptions& options,
                         const std::function<Result<void>(FileDevice&)>& fill) {
  if (options.extent_size_hint.value_or(0) > UINT32_MAX)
    return make_error(ErrorKind::kInvalidArgument, "Extent size hint is too large");
  const bool was_there = exists(path);
  auto file = TRY(FileDevice::create(path, lock));
  if (!file->is_block_device()) ask_file_system(*file, options);
  Result<void> filled = fill(*file);
  if (!filled && !was_there) ::unlink(path.c_str());
  return filled;
}

}  // namespace

Result<void> create_raw(const std::string& path, uint64_t size, const FileOptions& file_options) {
  return create_file(path, LockRequest::raw_writer(), file_options, [&](FileDevice& file) -> Result<void> {
    if (!file.is_block_device()) {
      TRY(file.resize(align_up(size, kSectorSize)));
      TRY(fill_holes(file, 0, align_up(size, kSectorSize), file_options.space));
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

Result<void> create_qcow2(const std::string& path, const qcow2::CreateOptions& options,
                          const FileOptions& file_options) {
  return create_file(path, LockRequest::format_writer(), file_options, [&](FileDevice& file) -> Result<void> {
    TRY(qcow2::Image::create(file, options));
    if (file.is_block_device()) return {};
    return fill_holes(file, 0, TRY(file.size()), file_options.space);
  });
}

}  // namespace varve::image
