#include "store/file_change.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "support/temp_dir.h"

namespace varve {
namespace {

class FileChangeTest : public ::testing::Test {
 protected:
  unsigned mode_of(const std::string& path) const {
    struct stat status{};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777U;
  }
  test::TempDir dir_;
  Layout layout_ = *Layout::open(dir_.path());
};

TEST_F(FileChangeTest, MakesTheFileAndItsDirectories) {
  const FileChange change{"/etc/libvirt/qemu/x.xml", "contents"};
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(apply(layout_, change));
    EXPECT_EQ(test::read_whole_file(dir_ / "etc/libvirt/qemu/x.xml"), "contents");
  }
  EXPECT_EQ(mode_of(dir_ / "etc/libvirt/qemu/x.xml"), 0600U);
}

TEST_F(FileChangeTest, AnExistingFileKeepsItsMode) {
  const std::string path = dir_.write("x.xml", "old");
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  ASSERT_TRUE(apply(layout_, {"/x.xml", "new"}));
  EXPECT_EQ(test::read_whole_file(path), "new");
  EXPECT_EQ(mode_of(path), 0640U);
}

TEST_F(FileChangeTest, RemovingIsIdempotent) {
  const std::string path = dir_.write("x.xml", "old");
  ASSERT_TRUE(apply(layout_, {"/x.xml", std::nullopt}));
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(apply(layout_, {"/x.xml", std::nullopt}));
  EXPECT_TRUE(apply(layout_, {"/no/such/directory/x.xml", std::nullopt}));
}

TEST_F(FileChangeTest, NothingIsWrittenThroughALinkThatLeadsOut) {
  test::TempDir outside;
  outside.write("victim", "safe");
  ASSERT_EQ(::symlink(outside.path().c_str(), (dir_ / "etc").c_str()), 0);
  // In the tree, the link's target is a directory below ROOT, and that is where the file goes.
  ASSERT_TRUE(apply(layout_, {"/etc/victim", "changed"}));
  EXPECT_EQ(test::read_whole_file(outside / "victim"), "safe");
  EXPECT_EQ(test::read_whole_file(dir_.path() + outside.path() + "/victim"), "changed");
  // A link in the place of the file itself is neither followed nor replaced.
  ASSERT_EQ(::symlink((outside / "victim").c_str(), (dir_ / "link").c_str()), 0);
  EXPECT_FALSE(apply(layout_, {"/link", "changed"}));
  EXPECT_EQ(test::read_whole_file(outside / "victim"), "safe");
}

TEST_F(FileChangeTest, PathsThatAreNoneAreRefused) {
  for (const char* path : {"", "x", "/", "/a/", "/a/..", "/."}) {
    EXPECT_FALSE(apply(layout_, {path, "x"})) << path;
    EXPECT_FALSE(apply(layout_, {path, std::nullopt})) << path;
  }
}

}  // namespace
}  // namespace varve
