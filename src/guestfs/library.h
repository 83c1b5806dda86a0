// The part of libguestfs's C API that is used here (guestfs(3), https://libguestfs.org/guestfs.3.html), found in
// libguestfs.so.0 when somebody looks into a disk. Its header comes with a hundred packages; the few declarations
// stand here as the manual gives them, and a test compares them with the header where that is installed. The library's
// ABI does not change within its number (guestfs(3), "API AND ABI").
#pragma once

#include <cstdint>

#include "base/result.h"

namespace varve::guestfs {

struct Guest;  // guestfs_h

struct DirectoryEntry {  // guestfs_dirent
  int64_t ino;
  char ftyp;
  char* name;
};
struct DirectoryEntries {  // guestfs_dirent_list
  uint32_t len;
  DirectoryEntry* val;
};

struct FileStatus {  // guestfs_statns
  int64_t st_dev, st_ino, st_mode, st_nlink, st_uid, st_gid, st_rdev, st_size, st_blksize, st_blocks;
  int64_t st_atime_sec, st_atime_nsec, st_mtime_sec, st_mtime_nsec, st_ctime_sec, st_ctime_nsec;
  int64_t st_spare[6];
};
struct FileStatuses {  // guestfs_statns_list
  uint32_t len;
  FileStatus* val;
};

// Optional arguments: of those below, the ones whose bit is set.
struct DriveOptions {  // guestfs_add_drive_opts_argv
  static constexpr uint64_t kReadonly = 1U << 0U, kFormat = 1U << 1U, kProtocol = 1U << 5U, kServer = 1U << 6U;
  uint64_t bitmask;
  int readonly;
  const char* format;
  const char* iface;
  const char* name;
  const char* label;
  const char* protocol;
  char* const* server;
  const char* username;
  const char* secret;
  const char* cachemode;
  const char* discard;
  int copyonread;
  int blocksize;
};
struct TarOutOptions {  // guestfs_tar_out_opts_argv
  static constexpr uint64_t kNumericOwner = 1U << 1U;
  uint64_t bitmask;
  const char* compress;
  int numericowner;
  char* const* excludes;
  int xattrs;
  int selinux;
  int acls;
};
struct MountLocalOptions {  // guestfs_mount_local_argv
  static constexpr uint64_t kReadonly = 1U << 0U;
  uint64_t bitmask;
  int readonly;
  const char* options;
  int cachetimeout;
  int debugcalls;
};
using ErrorHandler = void (*)(Guest* g, void* opaque, const char* message);

// X(name without "guestfs_", what it returns, what it takes). Texts and lists that are returned are the caller's, who
// frees them with free(), lists text by text.
#define VARVE_GUESTFS_FUNCTIONS(X)                                                                            \
  X(create_flags, Guest*, (unsigned flags, ...))                                                              \
  X(close, void, (Guest * g))                                                                                 \
  X(set_error_handler, void, (Guest * g, ErrorHandler handler, void* opaque))                                 \
  X(last_error, const char*, (Guest * g))                                                                     \
  X(last_errno, int, (Guest * g))                                                                             \
  X(set_backend, int, (Guest * g, const char* backend))                                                       \
  X(set_program, int, (Guest * g, const char* program))                                                       \
  X(add_drive_opts_argv, int, (Guest * g, const char* file, const DriveOptions*))                             \
  X(launch, int, (Guest * g))                                                                                 \
  X(list_filesystems, char**, (Guest * g))                                                                    \
  X(inspect_os, char**, (Guest * g))                                                                          \
  X(inspect_get_mountpoints, char**, (Guest * g, const char* root))                                           \
  X(inspect_get_product_name, char*, (Guest * g, const char* root))                                           \
  X(blockdev_getsize64, int64_t, (Guest * g, const char* device))                                             \
  X(vfs_label, char*, (Guest * g, const char* mountable))                                                     \
  X(mount_ro, int, (Guest * g, const char* mountable, const char* mountpoint))                                \
  X(umount_all, int, (Guest * g))                                                                             \
  X(statns, FileStatus*, (Guest * g, const char* path))                                                       \
  X(lstatns, FileStatus*, (Guest * g, const char* path))                                                      \
  X(lstatnslist, FileStatuses*, (Guest * g, const char* path, char* const* names))                            \
  X(readdir, DirectoryEntries*, (Guest * g, const char* path))                                                \
  X(realpath, char*, (Guest * g, const char* path))                                                           \
  X(readlink, char*, (Guest * g, const char* path))                                                           \
  X(readlinklist, char**, (Guest * g, const char* path, char* const* names))                                  \
  X(download, int, (Guest * g, const char* path, const char* local_file))                                     \
  X(tar_out_opts_argv, int, (Guest * g, const char* directory, const char* local_file, const TarOutOptions*)) \
  X(user_cancel, int, (Guest * g))                                                                            \
  X(mount_local_argv, int, (Guest * g, const char* local_directory, const MountLocalOptions*))                \
  X(mount_local_run, int, (Guest * g))                                                                        \
  X(free_dirent_list, void, (DirectoryEntries*))                                                              \
  X(free_statns, void, (FileStatus*))                                                                         \
  X(free_statns_list, void, (FileStatuses*))

struct Library {
#define VARVE_GUESTFS_MEMBER(name, returns, takes) returns(*name) takes = nullptr;
  VARVE_GUESTFS_FUNCTIONS(VARVE_GUESTFS_MEMBER)
#undef VARVE_GUESTFS_MEMBER
};

// kUnsupported where there is no libguestfs, or one that lacks a function. It stays loaded until the process ends.
Result<Library> load_library();

}  // namespace varve::guestfs
