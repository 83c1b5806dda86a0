#include "guestfs/copy_out.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace varve::guestfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Entry {
  std::string name;
  mode_t mode = S_IFREG | 0644;
  std::string contents = {};
  std::string link = {};  // of a symbolic link
  std::string hardlink = {};
};

class UnpackTree : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(target());
    std::ofstream(dir_ / "outside") << "untouched";
  }
  std::string target() const { return std::filesystem::canonical(dir_.path()).string() + "/target"; }

  Result<CopiedOut> unpack(const std::vector<Entry>& entries) const {
    const std::string file = dir_ / "tree.tar";
    ::archive* writer = ::archive_write_new();
    ::archive_write_set_format_gnutar(writer);
    ::archive_write_open_filename(writer, file.c_str());
    for (const Entry& one : entries) {
      archive_entry* entry = ::archive_entry_new();
      ::archive_entry_set_pathname(entry, one.name.c_str());
      ::archive_entry_set_mode(entry, one.mode);
      ::archive_entry_set_size(entry, static_cast<la_int64_t>(one.contents.size()));
      ::archive_entry_set_mtime(entry, 1000000000, 0);
      if (!one.link.empty()) ::archive_entry_set_symlink(entry, one.link.c_str());
      if (!one.hardlink.empty()) ::archive_entry_set_hardlink(entry, one.hardlink.c_str());
      EXPECT_EQ(::archive_write_header(writer, entry), ARCHIVE_OK) << ::archive_error_string(writer);
      ::archive_write_data(writer, one.contents.data(), one.contents.size());
      ::archive_entry_free(entry);
    }
    ::archive_write_close(writer);
    ::archive_write_free(writer);
    const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    return unpack_tree(fd.get(), target(), {});
  }
  void expect_refused(const std::vector<Entry>& entries) const {
    const auto result = unpack(entries);
    EXPECT_FALSE(result.has_value());
    EXPECT_EQ(test::read_whole_file(dir_ / "outside"), "untouched");
    EXPECT_FALSE(std::filesystem::exists(dir_ / "evil"));
  }

  test::TempDir dir_;
};

TEST_F(UnpackTree, KeepsModesTimesAndLinks) {
  const auto result = unpack({{.name = "./"},
                              {.name = "./a", .mode = S_IFDIR | 0750},
                              {.name = "./a/file", .mode = S_IFREG | 04755, .contents = "text"},
                              {.name = "./a/again", .hardlink = "./a/file"},
                              {.name = "./a/link", .mode = S_IFLNK | 0777, .link = "/etc/passwd"},
                              {.name = "./a/fifo", .mode = S_IFIFO | 0666}});
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_THAT(result->left_out, ElementsAre("a/fifo"));
  EXPECT_EQ(result->bytes, 4u);
  struct stat status = {};
  ASSERT_EQ(::stat((target() + "/a/file").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0755U);  // no setuid bit
  EXPECT_EQ(status.st_mtime, 1000000000);
  EXPECT_EQ(status.st_nlink, 2u);
  EXPECT_EQ(std::filesystem::read_symlink(target() + "/a/link"), "/etc/passwd");
}

TEST_F(UnpackTree, NothingGoesOutOfTheTarget) {
  expect_refused({{.name = "../evil", .contents = "x"}});
  expect_refused({{.name = "a/../../evil", .contents = "x"}});
  expect_refused({{.name = dir_ / "evil", .contents = "x"}});
}

TEST_F(UnpackTree, NothingGoesThroughALinkOfTheGuests) {
  expect_refused(
      {{.name = "door", .mode = S_IFLNK | 0777, .link = dir_.path()}, {.name = "door/evil", .contents = "x"}});
  expect_refused({{.name = "up", .mode = S_IFLNK | 0777, .link = ".."}, {.name = "up/outside", .contents = "x"}});
}

TEST_F(UnpackTree, NoFileFromOutsideIsLinkedIn) {
  expect_refused({{.name = "in", .hardlink = "../outside"}});
  expect_refused({{.name = "in", .hardlink = dir_ / "outside"}});
  expect_refused(
      {{.name = "way", .mode = S_IFLNK | 0777, .link = dir_.path()}, {.name = "in", .hardlink = "way/outside"}});
}

TEST_F(UnpackTree, StopsWhenItIsAsked) {
  const std::string file = dir_ / "x";
  const auto result = unpack({{.name = "a", .contents = "x"}});
  ASSERT_TRUE(result);
  const UniqueFd fd(::open((dir_ / "tree.tar").c_str(), O_RDONLY | O_CLOEXEC));
  std::filesystem::remove_all(target());
  std::filesystem::create_directory(target());
  const CopyWatch watch = {.stop = [] { return true; }, .progress = {}};
  const auto stopped = unpack_tree(fd.get(), target(), watch);
  ASSERT_FALSE(stopped.has_value());
  EXPECT_EQ(stopped.error().kind, ErrorKind::kInterrupted);
}

}  // namespace
}  // namespace varve::guestfs
