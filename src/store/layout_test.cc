#include "store/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class LayoutTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(root_ + "/var/lib/libvirt/images");
    dir_.write("root/var/lib/libvirt/images/a.qcow2", "a");
    dir_.write("outside.qcow2", "secret");
  }
  Layout layout() const { return *Layout::open(root_); }
  void link(const std::string& target, const std::string& at) {
    ASSERT_EQ(::symlink(target.c_str(), (root_ + at).c_str()), 0) << at;
  }

  test::TempDir dir_;
  std::string root_ = [this] {
    std::filesystem::create_directory(dir_ / "root");
    return std::filesystem::canonical(dir_ / "root").string();
  }();
};

TEST_F(LayoutTest, NamesThePathsOfLibvirt) {
  EXPECT_EQ(Layout::definition("a b"), "/etc/libvirt/qemu/a b.xml");
  EXPECT_EQ(Layout::snapshot("vm", "s--1"), "/var/lib/libvirt/qemu/snapshot/vm/s--1.xml");
  EXPECT_EQ(Layout::lock_file("vm"), "/var/lib/varve/lock/vm");
  EXPECT_EQ(layout().shown("/etc"), root_ + "/etc");
  EXPECT_EQ(Layout::open("/")->shown("/etc"), "/etc");
}

TEST_F(LayoutTest, OpensADirectoryByAnyNameAndNothingElse) {
  ASSERT_EQ(::symlink(root_.c_str(), (dir_ / "alias").c_str()), 0);
  EXPECT_EQ(Layout::open(dir_ / "alias")->root(), root_);
  EXPECT_EQ(Layout::open(root_ + "/")->root(), root_);
  EXPECT_EQ(Layout::open("/")->root(), "/");
  EXPECT_EQ(Layout::open(root_ + "/nope").error().kind, ErrorKind::kNotFound);
  EXPECT_FALSE(Layout::open(dir_ / "outside.qcow2"));
}

TEST_F(LayoutTest, ResolvesPlainPaths) {
  EXPECT_EQ(*layout().resolve("/var/lib/libvirt/images/a.qcow2"), root_ + "/var/lib/libvirt/images/a.qcow2");
  EXPECT_EQ(*layout().resolve("//var/./lib/libvirt//images/"), root_ + "/var/lib/libvirt/images");
  EXPECT_EQ(*layout().resolve("/"), root_);
  EXPECT_EQ(*Layout::open("/")->resolve("/usr/.."), "/");
}

TEST_F(LayoutTest, NothingLeadsAboveRoot) {
  EXPECT_EQ(*layout().resolve("/../../../../var"), root_ + "/var");
  EXPECT_EQ(*layout().resolve("/var/../../../var/lib"), root_ + "/var/lib");
  link("../../../../../../../../../../../outside.qcow2", "/up");
  link((dir_ / "outside.qcow2"), "/absolute");
  link("/", "/top");
  link("/proc/self/root/etc/passwd", "/magic");
  EXPECT_EQ(layout().resolve("/up").error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(layout().resolve("/absolute").error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(layout().resolve("/magic").error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(*layout().resolve("/top"), root_);
  EXPECT_EQ(*layout().resolve("/top/../top/var"), root_ + "/var");
  EXPECT_EQ(layout().resolve_for_creation("/absolute").error().kind, ErrorKind::kNotFound);
}

TEST_F(LayoutTest, FollowsLinksAsInAChroot) {
  std::filesystem::create_directories(root_ + "/srv/vm");
  dir_.write("root/srv/vm/b.qcow2", "b");
  link("/srv/vm", "/var/lib/libvirt/images/pool");
  link("../../../../srv/vm/b.qcow2", "/var/lib/libvirt/images/relative");
  link("pool/b.qcow2", "/var/lib/libvirt/images/twice");
  for (const char* path :
       {"/var/lib/libvirt/images/pool/b.qcow2", "/var/lib/libvirt/images/relative", "/var/lib/libvirt/images/twice"}) {
    EXPECT_EQ(layout().resolve(path).value_or("?"), root_ + "/srv/vm/b.qcow2") << path;
  }
}

TEST_F(LayoutTest, ALoopOfLinksEnds) {
  link("/b", "/a");
  link("/a", "/b");
  const auto resolved = layout().resolve("/a/x");
  ASSERT_FALSE(resolved);
  EXPECT_EQ(resolved.error().sys_errno, ELOOP);
}

TEST_F(LayoutTest, WhatIsOutsideIsRefusedWithTheCommandThatBringsItIn) {
  const std::string outside = dir_ / "outside.qcow2";
  const auto plain = layout().resolve(outside);
  ASSERT_FALSE(plain);
  EXPECT_EQ(plain.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(plain.error().message, HasSubstr(root_ + outside));
  EXPECT_THAT(plain.error().notes, Contains(HasSubstr("cp -a --sparse=always " + outside + " " + root_ + outside)));

  link(outside, "/disk");
  const auto linked = layout().resolve("/disk");
  ASSERT_FALSE(linked);
  EXPECT_THAT(linked.error().notes, Contains(HasSubstr(root_ + "/disk leads to " + outside)));
  EXPECT_THAT(linked.error().notes, Contains(HasSubstr("cp -a --sparse=always " + outside)));
  // The command does what it says.
  std::string command = linked.error().notes.back();
  command = command.substr(command.find('`') + 1);
  command = command.substr(0, command.find('`'));
  test::run_ok({"sh", "-c", command});
  EXPECT_EQ(*layout().resolve("/disk"), root_ + outside);
}

TEST_F(LayoutTest, PathsThatAreNoneAreRefused) {
  for (const char* path : {"", "relative", "./x"}) {
    EXPECT_EQ(layout().resolve(path).error().kind, ErrorKind::kInvalidArgument) << path;
  }
  EXPECT_EQ(layout().resolve(std::string("/a\0b", 4)).error().kind, ErrorKind::kInvalidArgument);
  EXPECT_FALSE(layout().resolve("/var/lib/libvirt/images/a.qcow2/x"));
  EXPECT_FALSE(layout().resolve("/" + std::string(5000, 'x')));
}

TEST_F(LayoutTest, TheLastComponentMayBeNew) {
  EXPECT_EQ(*layout().resolve_for_creation("/var/lib/libvirt/images/new"), root_ + "/var/lib/libvirt/images/new");
  EXPECT_EQ(*layout().resolve_for_creation("/var/lib/libvirt/images/a.qcow2"),
            root_ + "/var/lib/libvirt/images/a.qcow2");
  EXPECT_EQ(layout().resolve_for_creation("/var/nope/new").error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(layout().resolve_for_creation("/var/nope/..").error().kind, ErrorKind::kNotFound);
  link("/var/target", "/dangling");
  EXPECT_EQ(*layout().resolve_for_creation("/dangling"), root_ + "/var/target");
}

TEST_F(LayoutTest, TheNearestThatExistsIsFoundThroughLinksOfTheTree) {
  std::filesystem::create_directory(root_ + "/srv");
  link("/srv", "/data");
  EXPECT_EQ(*layout().nearest_existing("/data/x/y"), root_ + "/srv");
  EXPECT_EQ(*layout().nearest_existing("/data"), root_ + "/srv");
  EXPECT_EQ(*layout().nearest_existing("/var/lib/libvirt/images/a.qcow2"), root_ + "/var/lib/libvirt/images/a.qcow2");
  EXPECT_EQ(*layout().nearest_existing("/nothing/at/all"), root_);
}

TEST_F(LayoutTest, DirectoriesAreMadeBelowRoot) {
  std::filesystem::create_directory(root_ + "/srv");
  link("/srv", "/data");
  EXPECT_EQ(*layout().make_directories("/data/x/y", 0700), root_ + "/srv/x/y");
  struct stat status{};
  ASSERT_EQ(::stat((root_ + "/srv/x/y").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0700U);
  EXPECT_EQ(*layout().make_directories("/data/x/y"), root_ + "/srv/x/y");
  EXPECT_FALSE(layout().make_directories("/data/nope/../x"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/srv/nope"));
}

TEST_F(LayoutTest, HostPathsBecomeRootPaths) {
  EXPECT_EQ(*layout().to_root_path(root_ + "/var/lib/libvirt/images/a.qcow2"), "/var/lib/libvirt/images/a.qcow2");
  EXPECT_EQ(*layout().to_root_path(root_), "/");
  EXPECT_EQ(*Layout::open("/")->to_root_path("/usr/../usr"), "/usr");
  const auto outside = layout().to_root_path(dir_ / "outside.qcow2");
  ASSERT_FALSE(outside);
  EXPECT_EQ(outside.error().kind, ErrorKind::kRefused);
  EXPECT_THAT(outside.error().notes, Contains(HasSubstr(root_ + "/var/lib/libvirt/images/outside.qcow2")));
  EXPECT_EQ(layout().to_root_path(root_ + "/nope").error().kind, ErrorKind::kNotFound);
  // A neighbour whose name begins with ROOT's is not below ROOT.
  std::filesystem::create_directory(root_ + "2");
  EXPECT_EQ(layout().to_root_path(root_ + "2").error().kind, ErrorKind::kRefused);
}

TEST(LayoutRedirectTest, WhatIsElsewhereIsFoundThere) {
  test::TempDir dir;
  Layout layout = *Layout::open("/");
  layout.redirect(Layout::definitions_directory(), dir / "config");
  layout.redirect(Layout::varve_directory(), dir / "state");
  EXPECT_EQ(layout.shown(Layout::definition("vm")), dir / "config/vm.xml");
  EXPECT_EQ(layout.shown("/etc/libvirt/qemux"), "/etc/libvirt/qemux");
  EXPECT_EQ(layout.shown(Layout::images_directory()), "/var/lib/libvirt/images");
  EXPECT_EQ(*layout.make_directories(Layout::lock_directory()), dir / "state/lock");
  EXPECT_EQ(*layout.resolve(Layout::lock_directory()), dir / "state/lock");
  EXPECT_EQ(layout.resolve(Layout::definition("vm")).error().kind, ErrorKind::kNotFound);
}

}  // namespace
}  // namespace varve
