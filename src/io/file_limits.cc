#include "io/file_limits.h"

#include <linux/magic.h>
#include <sys/statfs.h>

namespace varve {

namespace {

constexpr unsigned kExfat = 0x2011BAB0;  // EXFAT_SUPER_MAGIC, which older kernel headers do not have
constexpr unsigned kNtfs = 0x7366746e;   // ntfs3

}  // namespace

FileLimits file_limits(const std::string& path) {
  struct statfs fs;
  if (::statfs(path.c_str(), &fs) != 0) return {};
  switch (static_cast<unsigned>(fs.f_type)) {
    case MSDOS_SUPER_MAGIC:
      return {.max_file_bytes = 0xffffffff, .has_holes = false, .has_strict_names = true, .file_system = "FAT"};
    case kExfat:
      return {.max_file_bytes = {}, .has_holes = false, .has_strict_names = true, .file_system = "exFAT"};
    case kNtfs:
      return {.max_file_bytes = {}, .has_holes = true, .has_strict_names = true, .file_system = "NTFS"};
    default:
      return {};
  }
}

bool is_strict_name(const std::string& name) {
  for (const char character : name) {
    if (static_cast<unsigned char>(character) < 0x20) return false;
  }
  return name.find_first_of("<>:\"|?*\\") == std::string::npos && !name.ends_with('.') && !name.ends_with(' ');
}

}  // namespace varve
