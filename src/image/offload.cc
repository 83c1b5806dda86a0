#include "image/offload.h"

#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace varve::image {

namespace {

bool means_unsupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EXDEV || error == EINVAL ||
         error == EBADF || error == EPERM;
}

Error failed(int error, uint64_t offset) {
  Error result = system_error(error, fmt::format("error while writing at byte {}", offset));
  result.offset = offset;
  return result;
}

}  // namespace

Result<bool> share_blocks(FileDevice& source, FileDevice& target, uint64_t size) {
  if (source.is_block_device() || target.is_block_device()) return false;
  if (TRY(source.size()) != size || TRY(target.size()) != size) return false;
  file_clone_range range{};
  range.src_fd = source.fd();  // of all of it, up to the end of the file, wherever that is in its block
  if (::ioctl(target.fd(), FICLONERANGE, &range) == 0) return true;
  if (means_unsupported(errno)) return false;
  return failed(errno, 0);
}

Result<bool> copy_range_in_kernel(FileDevice& source, FileDevice& target, uint64_t offset, uint64_t length) {
  auto from = static_cast<off_t>(offset);
  const auto end = static_cast<off_t>(offset + length);
  auto to = from;
  while (from < end) {
    const ssize_t copied = ::copy_file_range(source.fd(), &from, target.fd(), &to, static_cast<size_t>(end - from), 0);
    if (copied > 0) continue;
    if (copied < 0 && errno == EINTR) continue;
    if (copied == 0 || means_unsupported(errno)) return false;
    return failed(errno, static_cast<uint64_t>(to));
  }
  return true;
}

Result<bool> copy_in_kernel(FileDevice& source, FileDevice& target, uint64_t size) {
  for (const Extent& extent : TRY(source.extents(0, size))) {
    if (extent.kind != ExtentKind::kData) continue;
    if (!TRY(copy_range_in_kernel(source, target, extent.offset, extent.length))) return false;
  }
  return true;
}

}  // namespace varve::image
