#include "base/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/unique_fd.h"
#include "support/mounted_file_system.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using test::read_whole_file;

struct stat status(const std::string& path) {
  struct stat st = {};
  EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
  return st;
}

unsigned mode(const std::string& path) {
  return status(path).st_mode & 07777u;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class AtomicFile : public testing::Test {
 protected:
  test::TempDir dir_;
  std::string path_ = dir_ / "file";
};

TEST_F(AtomicFile, ANewFileHasItsContentsAndExactMode) {
  const mode_t umask_before = ::umask(0077);
  ASSERT_TRUE(replace_file(path_, "one"));
  ASSERT_TRUE(replace_file(dir_ / "public", "two", {.mode = 0644}));
  ::umask(umask_before);
  EXPECT_EQ(read_whole_file(path_), "one");
  EXPECT_EQ(mode(path_), 0600u);
  EXPECT_EQ(mode(dir_ / "public"), 0644u);
  EXPECT_EQ(names_in(dir_.path()), (std::vector<std::string>{"file", "public"}));
}

TEST_F(AtomicFile, AReplacedFileIsAnotherFileWithTheSameMode) {
  dir_.write("file", "old");
  ASSERT_EQ(::chmod(path_.c_str(), 0640), 0);
  const ino_t before = status(path_).st_ino;
  const UniqueFd old(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(replace_file(path_, "new contents"));
  EXPECT_EQ(read_whole_file(path_), "new contents");
  EXPECT_EQ(mode(path_), 0640u);
  EXPECT_NE(status(path_).st_ino, before);
  char buffer[8];
  EXPECT_EQ(::read(old.get(), buffer, sizeof buffer), 3);  // a reader of the old file still has it, whole
  EXPECT_EQ(names_in(dir_.path()), (std::vector<std::string>{"file"}));
}

TEST_F(AtomicFile, OwnerAndGroupAreKept) {
  REQUIRES_ROOT();
  dir_.write("file", "old");
  ASSERT_EQ(::chown(path_.c_str(), 12345, 23456), 0);
  ASSERT_EQ(::chmod(path_.c_str(), 04750), 0);
  ASSERT_TRUE(replace_file(path_, "new"));
  EXPECT_EQ(status(path_).st_uid, 12345u);
  EXPECT_EQ(status(path_).st_gid, 23456u);
  EXPECT_EQ(mode(path_), 04750u);
}

// struct posix_acl_xattr_header and entries, little-endian: user::rw-, user:4711:r--, group::r--, mask::r--, other::---
std::string acl_value() {
  std::string value("\x02\x00\x00\x00", 4);
  const auto entry = [&value](unsigned tag, unsigned permissions, uint32_t id) {
    for (const unsigned byte : {tag & 0xff, tag >> 8, permissions, 0u}) value.push_back(static_cast<char>(byte));
    for (unsigned shift = 0; shift < 32; shift += 8) value.push_back(static_cast<char>((id >> shift) & 0xff));
  };
  entry(0x01, 6, UINT32_MAX);
  entry(0x02, 4, 4711);
  entry(0x04, 4, UINT32_MAX);
  entry(0x10, 4, UINT32_MAX);
  entry(0x20, 0, UINT32_MAX);
  return value;
}

std::string attribute(const std::string& path, const char* name) {
  char buffer[1024];
  const ssize_t n = ::getxattr(path.c_str(), name, buffer, sizeof buffer);
  return n < 0 ? "" : std::string(buffer, static_cast<size_t>(n));
}

TEST_F(AtomicFile, TheAclIsKept) {
  dir_.write("file", "old");
  const std::string acl = acl_value();
  if (::setxattr(path_.c_str(), "system.posix_acl_access", acl.data(), acl.size(), 0) != 0) {
    GTEST_SKIP() << "the file system of " << dir_.path() << " has no ACLs";
  }
  ASSERT_TRUE(replace_file(path_, "new"));
  EXPECT_EQ(read_whole_file(path_), "new");
  EXPECT_EQ(attribute(path_, "system.posix_acl_access"), acl);
  EXPECT_EQ(mode(path_), 0640u);
}

TEST_F(AtomicFile, AnInheritedAclDoesNotCreepIntoAReplacedFile) {
  dir_.write("file", "old");
  ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
  const std::string acl = acl_value();
  if (::setxattr(dir_.path().c_str(), "system.posix_acl_default", acl.data(), acl.size(), 0) != 0) {
    GTEST_SKIP() << "the file system of " << dir_.path() << " has no ACLs";
  }
  ASSERT_TRUE(replace_file(path_, "new"));
  EXPECT_EQ(attribute(path_, "system.posix_acl_access"), "");
  EXPECT_EQ(mode(path_), 0600u);
}

TEST_F(AtomicFile, TheSelinuxLabelIsKept) {
  REQUIRES_ROOT();
  dir_.write("file", "old");
  const std::string label("system_u:object_r:virt_etc_rw_t:s0\0", 35);
  if (::setxattr(path_.c_str(), "security.selinux", label.data(), label.size(), 0) != 0) {
    GTEST_SKIP() << "the file system of " << dir_.path() << " has no security labels";
  }
  ASSERT_TRUE(replace_file(path_, "new"));
  EXPECT_EQ(attribute(path_, "security.selinux"), label);
}

TEST_F(AtomicFile, ASymbolicLinkIsNeitherFollowedNorReplaced) {
  dir_.write("target", "old");
  ASSERT_EQ(::symlink((dir_ / "target").c_str(), path_.c_str()), 0);
  const auto r = replace_file(path_, "new");
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(r.error().message, "cannot write '" + path_ + "': it is a symbolic link");
  EXPECT_EQ(read_whole_file(dir_ / "target"), "old");
  EXPECT_TRUE(std::filesystem::is_symlink(path_));
}

TEST_F(AtomicFile, RelativePathsAndDirectoriesAreRefused) {
  EXPECT_EQ(replace_file("file", "x").error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(remove_file_durably("file").error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(make_directories("a/b").error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(replace_file(dir_.path(), "x").error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(replace_file(dir_.path() + "/", "x").error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(replace_file(dir_ / "no/file", "x").error().kind, ErrorKind::kNotFound);
  EXPECT_TRUE(names_in(dir_.path()).empty());
}

TEST_F(AtomicFile, CreateRefusesAnExistingFile) {
  ASSERT_TRUE(create_file(path_, "one", {.mode = 0640}));
  const auto r = create_file(path_, "two");
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kAlreadyExists);
  EXPECT_EQ(read_whole_file(path_), "one");
  EXPECT_EQ(mode(path_), 0640u);
  EXPECT_EQ(names_in(dir_.path()), (std::vector<std::string>{"file"}));
}

TEST_F(AtomicFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  REQUIRES_ROOT();
  const test::MountedFileSystem disk("tmpfs", "size=64k");
  const std::string path = disk / "file";
  ASSERT_TRUE(replace_file(path, "old"));
  const auto r = replace_file(path, std::string(1 << 20, 'x'));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kNoSpace);
  EXPECT_EQ(r.error().message, "cannot write '" + path + "': No space left on device");
  EXPECT_EQ(read_whole_file(path), "old");
  EXPECT_EQ(names_in(disk.path()), (std::vector<std::string>{"file"}));
}

// Somebody else for the length of a block, where the test runs as root.
class OtherUser {
 public:
  OtherUser() { EXPECT_EQ(::seteuid(65534), 0); }
  OtherUser(const OtherUser&) = delete;
  OtherUser& operator=(const OtherUser&) = delete;
  ~OtherUser() { EXPECT_EQ(::seteuid(0), 0); }
};

TEST_F(AtomicFile, ADirectoryWithoutPermissionChangesNothing) {
  REQUIRES_ROOT();
  dir_.write("file", "old");
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0755), 0);
  {
    const OtherUser other;
    const auto r = replace_file(path_, "new");
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().kind, ErrorKind::kPermission);
    EXPECT_EQ(remove_file_durably(path_).error().kind, ErrorKind::kPermission);
    EXPECT_EQ(make_directories(dir_ / "a/b").error().kind, ErrorKind::kPermission);
    EXPECT_TRUE(make_directories(dir_.path()));
  }
  EXPECT_EQ(read_whole_file(path_), "old");
}

TEST_F(AtomicFile, AnOwnerThatCannotBeKeptIsARefusal) {
  REQUIRES_ROOT();
  dir_.write("file", "root's");
  ASSERT_EQ(::chmod(path_.c_str(), 0644), 0);
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0777), 0);
  {
    const OtherUser other;
    const auto r = replace_file(path_, "new");
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().kind, ErrorKind::kPermission);
    EXPECT_NE(r.error().message.find("cannot keep the owner (user 0, group 0)"), std::string::npos);
  }
  EXPECT_EQ(read_whole_file(path_), "root's");
  EXPECT_EQ(names_in(dir_.path()), (std::vector<std::string>{"file"}));
}

TEST_F(AtomicFile, ReadTakesAtMostWhatIsAllowed) {
  dir_.write("file", "12345");
  EXPECT_EQ(*read_file(path_, 5), "12345");
  const auto r = read_file(path_, 4);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().message, "cannot read '" + path_ + "': it is larger than 4 bytes");
  EXPECT_EQ(read_file(dir_ / "nothing", 5).error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(read_file(dir_.path(), 5).error().kind, ErrorKind::kInvalidArgument);
  ASSERT_EQ(::mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(read_file(dir_ / "pipe", 5).error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(*read_file("/proc/self/comm", 100), read_whole_file("/proc/self/comm"));
}

TEST_F(AtomicFile, RemoveAndRename) {
  dir_.write("file", "contents");
  dir_.write("other", "other");
  ASSERT_TRUE(rename_file_durably(path_, dir_ / "other"));
  EXPECT_EQ(names_in(dir_.path()), (std::vector<std::string>{"other"}));
  EXPECT_EQ(read_whole_file(dir_ / "other"), "contents");
  ASSERT_TRUE(remove_file_durably(dir_ / "other"));
  EXPECT_TRUE(names_in(dir_.path()).empty());
  EXPECT_EQ(remove_file_durably(dir_ / "other").error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(rename_file_durably(path_, dir_ / "other").error().kind, ErrorKind::kNotFound);
}

TEST_F(AtomicFile, DirectoriesAreMadeWhereTheyAreMissing) {
  ASSERT_TRUE(make_directories(dir_ / "a//b/c/", 0700));
  EXPECT_EQ(mode(dir_ / "a/b/c"), 0700u);
  EXPECT_EQ(mode(dir_ / "a"), 0700u);
  ASSERT_TRUE(make_directories(dir_ / "a/b/c", 0755));
  EXPECT_EQ(mode(dir_ / "a/b/c"), 0700u);
  dir_.write("a/file", "");
  const auto r = make_directories(dir_ / "a/file/d");
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(r.error().message,
            "cannot make the directory '" + dir_ / "a/file/d" + "': '" + dir_ / "a/file" + "' is not a directory");
}

// What lies in somebody's own directory becomes theirs; what was put in its place does not.
TEST_F(AtomicFile, OwnersAreGivenWhatLiesInTheirOwnDirectories) {
  REQUIRES_ROOT();
  const Owner nobody{.user = 65534, .group = 65534};
  std::filesystem::create_directories(dir_ / "theirs");
  std::filesystem::create_directories(dir_ / "ours");
  ASSERT_EQ(::chown((dir_ / "theirs").c_str(), nobody.user, nobody.group), 0);
  for (const std::string& directory : {dir_ / "theirs", dir_ / "ours"}) {
    const bool theirs = directory == dir_ / "theirs";
    const unsigned expected = theirs ? nobody.user : 0;
    ASSERT_TRUE(make_directories(directory + "/a/b", 0700, nobody));
    ASSERT_TRUE(create_file(directory + "/document", "text", {.owner = nobody}));
    ASSERT_TRUE(create_empty_file(directory + "/empty", 0600, nobody));
    for (const char* made : {"/a", "/a/b", "/document", "/empty"})
      EXPECT_EQ(status(directory + made).st_uid, expected) << directory << made;
  }
  EXPECT_EQ(create_empty_file(dir_ / "ours/empty", 0600, nobody).error().sys_errno, EEXIST);
  std::filesystem::create_symlink("nowhere", dir_ / "ours/link");
  EXPECT_EQ(create_empty_file(dir_ / "ours/link", 0600, nobody).error().sys_errno, EEXIST);
}

TEST_F(AtomicFile, WhoseFilesCanBeMadeIsTriedWithoutATrace) {
  REQUIRES_ROOT();
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0777), 0);
  EXPECT_TRUE(*can_make_file_of(dir_.path(), {.user = 65534, .group = 65534}));
  {
    const OtherUser other;
    EXPECT_FALSE(*can_make_file_of(dir_.path(), {.user = 0, .group = 0}));
    EXPECT_TRUE(*can_make_file_of(dir_.path(), {.user = ::geteuid(), .group = ::getegid()}));
  }
  // A directory that gives its group to what is made in it.
  ASSERT_EQ(::chown(dir_.path().c_str(), 0, 7), 0);
  ASSERT_EQ(::chmod(dir_.path().c_str(), 02777), 0);
  {
    const OtherUser other;
    EXPECT_TRUE(*can_make_file_of(dir_.path(), {.user = ::geteuid(), .group = 7}));
    EXPECT_FALSE(*can_make_file_of(dir_.path(), {.user = ::geteuid(), .group = 8}));
  }
  EXPECT_TRUE(names_in(dir_.path()).empty());
  EXPECT_EQ(can_make_file_of(dir_ / "nothing", {}).error().kind, ErrorKind::kNotFound);
}

TEST_F(AtomicFile, TemporaryNamesAreKnown) {
  EXPECT_TRUE(is_temporary_file_name(".varve-0123456789abcdef.tmp"));
  EXPECT_FALSE(is_temporary_file_name(".varve-0123456789abcdeX.tmp"));
  EXPECT_FALSE(is_temporary_file_name(".varve-0123456789abcdef"));
  EXPECT_FALSE(is_temporary_file_name(".varve-.tmp"));
  EXPECT_FALSE(is_temporary_file_name("domain.xml"));
}

}  // namespace
}  // namespace varve
