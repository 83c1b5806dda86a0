#include "base/paths.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <optional>
#include <utility>

#include "base/unique_fd.h"

namespace varve {

namespace {

// The same for all of one mount, and, where the kernel says, for no other: a directory of the same file system that is
// mounted somewhere else has another. A subvolume that is not mounted itself is part of the mount above it.
std::optional<std::pair<uint64_t, uint64_t>> mount_of(const std::string& path) {
  struct statx found = {};
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_MNT_ID, &found) != 0) return std::nullopt;
  if ((found.stx_mask & STATX_MNT_ID) != 0) return std::pair{found.stx_mnt_id, uint64_t{0}};
  return std::pair{uint64_t{found.stx_dev_major}, uint64_t{found.stx_dev_minor}};
}

}  // namespace

std::string mount_point_of(std::string path) {
  const auto here = mount_of(path);
  while (here && path != "/" && path != ".") {
    std::string parent = directory_of(path);
    if (mount_of(parent) != here) break;
    path = std::move(parent);
  }
  return path;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool has_attribute(const std::string& path, unsigned attribute) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC));
  unsigned attributes = 0;
  return fd && ::ioctl(fd.get(), FS_IOC_GETFLAGS, &attributes) == 0 && (attributes & attribute) != 0;
}

}  // namespace varve
