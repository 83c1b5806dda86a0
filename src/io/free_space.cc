#include "io/free_space.h"

#include <fmt/format.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "base/paths.h"
#include "base/units.h"

namespace varve {

namespace {

constexpr auto kXfs = 0x58465342;  // XFS_SUPER_MAGIC, which no header of the kernel's interface has

// The real path of the nearest that exists.
std::string existing(std::string path) {
  if (!path.starts_with('/')) path.insert(0, "./");
  for (;;) {
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), &std::free);
    if (real) return real.get();
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return "/";
    path.resize(slash == 0 ? 1 : slash);
    if (path == "/") return path;
  }
}

bool any_btrfs_compresses() {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);)
    if (line.find(" - btrfs ") != std::string::npos && line.find("compress") != std::string::npos) return true;
  return false;
}

// Blocks that ext4 keeps for its own tables: free, and nobody's.
uint64_t reserved_clusters(dev_t device) {
  char target[256];
  const std::string link = fmt::format("/sys/dev/block/{}:{}", major(device), minor(device));
  const ssize_t length = ::readlink(link.c_str(), target, sizeof target);
  const std::string path(target, static_cast<size_t>(std::max<ssize_t>(length, 0)));
  std::ifstream file("/sys/fs/ext4/" + path.substr(path.rfind('/') + 1) + "/reserved_clusters");
  uint64_t count = 0;
  return file >> count ? count : 0;
}

bool is_binding(const std::string& path, const struct statfs& fs) {
  if (fs.f_blocks == 0) return false;  // a tmpfs without a limit
  switch (static_cast<unsigned>(fs.f_type)) {
    case EXT4_SUPER_MAGIC:  // and ext2, ext3
    case kXfs:
    case TMPFS_MAGIC:
    case MSDOS_SUPER_MAGIC:
      return true;
    case BTRFS_SUPER_MAGIC:
      return !any_btrfs_compresses() && !has_attribute(path, FS_COMPR_FL);
    default:
      return false;
  }
}

// Bytes that this process may still write. Root may have what is reserved for it; and btrfs gives everybody what it
// has, although it says 0 to all but root when its metadata runs short.
uint64_t available_bytes(const struct statfs& fs, dev_t device) {
  uint64_t blocks = fs.f_bavail;
  if (fs.f_type == BTRFS_SUPER_MAGIC) {
    blocks = fs.f_bfree;
  } else if (::geteuid() == 0 && fs.f_bfree > blocks) {
    blocks = std::max<uint64_t>(blocks, fs.f_bfree - std::min(fs.f_bfree, reserved_clusters(device)));
  }
  return blocks * static_cast<uint64_t>(fs.f_frsize != 0 ? fs.f_frsize : fs.f_bsize);
}

}  // namespace

std::optional<FreeSpace> free_space(const std::string& path) {
  const std::string at = existing(path);
  struct statfs fs = {};
  struct stat here = {};
  if (::statfs(at.c_str(), &fs) != 0 || ::stat(at.c_str(), &here) != 0 || S_ISBLK(here.st_mode) || !is_binding(at, fs))
    return std::nullopt;
  FreeSpace space;
  space.file_system = here.st_dev;
  space.available = available_bytes(fs, here.st_dev);
  space.mount_point = mount_point_of(at);
  // In a directory with a project quota, ext4 and XFS give the quota's figures, and of its limits the soft one.
  struct statfs whole = {};
  if (::statfs(space.mount_point.c_str(), &whole) == 0 && whole.f_type == fs.f_type)
    space.available = std::max(space.available, available_bytes(whole, here.st_dev));
  return space;
}

uint64_t surplus_bytes(FileDevice& file) {
  const auto blocks = file.allocated_bytes();
  if (!blocks) return 0;
  const auto original = FileDevice::open(file.name(), Access::kReadOnly, LockRequest::none());
  if (!original) return 0;
  const auto size = (*original)->size();
  const auto extents = size ? (*original)->extents(0, *size) : Result<std::vector<Extent>>(size.error());
  if (!extents) return UINT64_MAX;
  uint64_t data = 0;
  for (const Extent& extent : *extents)
    if (extent.kind == ExtentKind::kData) data += extent.length;
  return *blocks - std::min(*blocks, data);
}

void SpaceNeeds::add(const std::string& path, uint64_t bytes) {
  if (bytes == 0) return;
  const auto space = free_space(path);
  if (!space) return;
  Need& need = needs_.try_emplace(space->file_system, Need{.space = *space, .bytes = 0}).first->second;
  if (__builtin_add_overflow(need.bytes, bytes, &need.bytes)) need.bytes = UINT64_MAX;
}

void SpaceNeeds::add(FileDevice& file, uint64_t bytes) {
  if (bytes == 0 || file.is_block_device()) return;
  add(file.name(), bytes - std::min(bytes, surplus_bytes(file)));
}

bool SpaceNeeds::enough() const {
  for (const auto& [file_system, need] : needs_)
    if (need.bytes > need.space.available) return false;
  return true;
}

Result<void> SpaceNeeds::check() const {
  std::optional<Error> error;
  for (const auto& [file_system, need] : needs_) {
    if (need.bytes <= need.space.available) continue;
    const std::string text =
        fmt::format("the file system {} has too little space: {} bytes ({}) are needed, {} ({}) are available",
                    need.space.mount_point, need.bytes, format_size(need.bytes), need.space.available,
                    format_size(need.space.available));
    if (error) {
      error->notes.push_back("also: " + text);
      continue;
    }
    error = make_error(ErrorKind::kNoSpace, text)
                .with_note(fmt::format("free {} bytes there, or enlarge it", need.bytes - need.space.available));
  }
  if (error) return *error;
  return {};
}

}  // namespace varve
