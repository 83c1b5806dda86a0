#include "io/file_usage.h"

#include <fmt/format.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace varve {

namespace {

constexpr uint32_t kExtentsAtOnce = 256;

// The structure ends with as many extents as its caller has room for.
struct Request {
  alignas(fiemap) std::array<std::byte, sizeof(fiemap) + kExtentsAtOnce * sizeof(fiemap_extent)> bytes{};
  fiemap& head() { return *reinterpret_cast<fiemap*>(bytes.data()); }
  const fiemap_extent& extent(uint32_t i) const {
    return *reinterpret_cast<const fiemap_extent*>(bytes.data() + sizeof(fiemap) + i * sizeof(fiemap_extent));
  }
};

std::optional<uint64_t> shared_bytes(int fd) {
  uint64_t shared = 0;
  uint64_t at = 0;
  for (;;) {
    Request request;
    request.head().fm_start = at;
    request.head().fm_length = FIEMAP_MAX_OFFSET - at;
    request.head().fm_extent_count = kExtentsAtOnce;
    if (::ioctl(fd, FS_IOC_FIEMAP, &request.head()) != 0) return std::nullopt;
    const uint32_t count = request.head().fm_mapped_extents;
    for (uint32_t i = 0; i < count; ++i) {
      const fiemap_extent& extent = request.extent(i);
      if ((extent.fe_flags & FIEMAP_EXTENT_SHARED) != 0) shared += extent.fe_length;
      at = extent.fe_logical + extent.fe_length;
      if ((extent.fe_flags & FIEMAP_EXTENT_LAST) != 0) return shared;
    }
    if (count == 0) return shared;
  }
}

}  // namespace

Result<std::optional<FileUsage>> file_usage(const FileDevice& file) {
  struct stat status;
  if (::fstat(file.fd(), &status) != 0) {
    return system_error(errno, fmt::format("can't look at {}", file.name()), file.name());
  }
  if (!S_ISREG(status.st_mode)) return std::optional<FileUsage>();
  return std::optional(FileUsage{.size_bytes = static_cast<uint64_t>(status.st_size),
                                 .occupied_bytes = static_cast<uint64_t>(status.st_blocks) * 512,
                                 .shared_bytes = shared_bytes(file.fd())});
}

}  // namespace varve
