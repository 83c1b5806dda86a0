// A file inside of a guest's file system, as stat(2) has it.
#pragma once

#include <cstdint>
#include <string>

namespace varve::guestfs {

enum class GuestFileKind : uint8_t { kFile, kDirectory, kLink, kBlockDevice, kCharacterDevice, kFifo, kSocket, kOther };

struct GuestFile {
  std::string name;  // without its directory; bytes, whatever the guest took for a name
  GuestFileKind kind = GuestFileKind::kOther;
  uint32_t mode = 0;  // the permission bits, with setuid, setgid and the sticky bit: 07777 at most
  int64_t owner = 0;
  int64_t group = 0;
  int64_t size_bytes = 0;
  int64_t modified_sec = 0;  // Unix time
  int64_t modified_nsec = 0;
  int64_t changed_sec = 0;  // of the inode (ctime): it can't be set by programs
  int64_t changed_nsec = 0;
  std::string link_target;  // of a link
};

const char* name_of(GuestFileKind kind);  // "file", "directory", "link", "block device", …

// As `ls -l` shows it: "drwxr-xr-x".
std::string mode_text(const GuestFile& file);

// "/etc" and "passwd" make "/etc/passwd".
std::string path_in(const std::string& directory, const std::string& name);

}  // namespace varve::guestfs
