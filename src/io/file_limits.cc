#include "io/file_limits.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>
#include <vector>

namespace varve {

namespace {

// As /proc/self/mountinfo calls it: "ext4", "vfat", "fuse.fusefat". proc(5).
std::string file_system_name(const std::string& path) {
  struct statx found = {};
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_MNT_ID, &found) != 0 || (found.stx_mask & STATX_MNT_ID) == 0) return {};
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    uint64_t id = 0;
    if (!(words >> id) || id != found.stx_mnt_id) continue;
    for (std::string word; words >> word;) {
      if (word != "-") continue;
      words >> word;
      return word;
    }
  }
  return {};
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

FileLimits file_limits(const std::string& path) {
  const std::string name = file_system_name(path);
  if (contains(name, "exfat")) {
    return {.max_file_bytes = {}, .has_holes = false, .has_strict_names = true, .file_system = "exFAT"};
  }
  if (contains(name, "fat") || name == "msdos") {
    return {.max_file_bytes = 0xffffffff, .has_holes = false, .has_strict_names = true, .file_system = "FAT"};
  }
  if (contains(name, "ntfs") || name == "fuseblk") {  // ntfs-3g mounts as fuseblk
    return {.max_file_bytes = {}, .has_holes = true, .has_strict_names = true, .file_system = "NTFS"};
  }
  return {};
}

bool is_strict_name(const std::string& name) {
  for (const char character : name) {
    if (static_cast<unsigned char>(character) < 0x20) return false;
  }
  return name.find_first_of("<>:\"|?*\\") == std::string::npos && !name.ends_with('.') && !name.ends_with(' ');
}

}  // namespace varve
