// The declarations of library.h beside those of libguestfs's own header, where that is installed.
#include "guestfs/library.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <utility>

#if __has_include(<guestfs.h>)
#include <guestfs.h>
#endif

namespace varve::guestfs {
namespace {

TEST(GuestfsLibrary, DeclarationsAreThoseOfTheHeader) {
#if __has_include(<guestfs.h>)
#define EXPECT_SAME_PLACE(ours, theirs, member)                         \
  EXPECT_EQ(offsetof(ours, member), offsetof(struct ::theirs, member)); \
  EXPECT_EQ(sizeof(std::declval<ours>().member), sizeof(std::declval<struct ::theirs>().member))
  EXPECT_EQ(sizeof(DirectoryEntry), sizeof(struct ::guestfs_dirent));
  EXPECT_SAME_PLACE(DirectoryEntry, guestfs_dirent, name);
  EXPECT_SAME_PLACE(DirectoryEntries, guestfs_dirent_list, val);
  EXPECT_EQ(sizeof(FileStatus), sizeof(struct ::guestfs_statns));
  EXPECT_SAME_PLACE(FileStatus, guestfs_statns, st_ino);
  EXPECT_SAME_PLACE(FileStatus, guestfs_statns, st_mode);
  EXPECT_SAME_PLACE(FileStatus, guestfs_statns, st_size);
  EXPECT_SAME_PLACE(FileStatus, guestfs_statns, st_mtime_sec);
  EXPECT_SAME_PLACE(FileStatus, guestfs_statns, st_ctime_nsec);
  EXPECT_SAME_PLACE(FileStatuses, guestfs_statns_list, val);
  EXPECT_SAME_PLACE(DriveOptions, guestfs_add_drive_opts_argv, format);
  EXPECT_SAME_PLACE(DriveOptions, guestfs_add_drive_opts_argv, protocol);
  EXPECT_SAME_PLACE(DriveOptions, guestfs_add_drive_opts_argv, server);
  EXPECT_EQ(DriveOptions::kProtocol, uint64_t{GUESTFS_ADD_DRIVE_OPTS_PROTOCOL_BITMASK});
  EXPECT_EQ(DriveOptions::kServer, uint64_t{GUESTFS_ADD_DRIVE_OPTS_SERVER_BITMASK});
  EXPECT_SAME_PLACE(TarOutOptions, guestfs_tar_out_opts_argv, numericowner);
  EXPECT_EQ(TarOutOptions::kNumericOwner, uint64_t{GUESTFS_TAR_OUT_OPTS_NUMERICOWNER_BITMASK});
  EXPECT_SAME_PLACE(MountLocalOptions, guestfs_mount_local_argv, readonly);
#else
  GTEST_SKIP() << "libguestfs-dev is not installed";
#endif
}

}  // namespace
}  // namespace varve::guestfs
