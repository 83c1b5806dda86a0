// Who may do what: as root, as the owner of the files, as neither; and what is in the way is found before anything is
// touched, with the remedy.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "interop/host_directory.h"
#include "support/loop_file_system.h"

namespace varve {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr unsigned kNobody = 65534;
constexpr unsigned kDaemon = 1;

class PermissionsTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_ROOT();
    REQUIRES_PROGRAM("setpriv");
    REQUIRES_PROGRAM("qemu-img");
    ASSERT_EQ(::chmod(std::filesystem::path(host_.root()).parent_path().c_str(), 0755), 0);
    std::filesystem::create_directory(host_.root());
  }
  void give_host_to(unsigned user) const {
    test::run_ok({"chown", "-R", std::to_string(user) + ":" + std::to_string(user), host_.root()});
  }
  test::ProcessResult varve_as(unsigned user, const std::vector<std::string>& command) const {
    const std::string id = std::to_string(user);
    std::vector<std::string> words = {"setpriv", "--reuid=" + id,      "--regid=" + id, "--clear-groups", VARVE_COMMAND,
                                      "-c",      "dir:" + host_.root()};
    words.insert(words.end(), command.begin(), command.end());
    return test::run(words);
  }
  // Ends so, says this, changes nothing.
  void expect_refused(unsigned user, const std::vector<std::string>& command, int exit_code,
                      const testing::Matcher<std::string>& message) const {
    const auto before = host_.contents();
    const auto result = varve_as(user, command);
    EXPECT_EQ(result.exit_code, exit_code) << result.out << result.err;
    EXPECT_THAT(result.err, message);
    EXPECT_TRUE(host_.contents() == before) << "something was changed";
  }
  static std::string owner_and_mode(const std::string& path) {
    struct stat status = {};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return std::to_string(status.st_uid) + ":" + std::to_string(status.st_gid) + " " +
           std::to_string(status.st_mode & 07777);
  }
  std::string snapshots() const { return host_.root() + "/var/lib/libvirt/qemu/snapshot/vm"; }

  test::HostDirectory host_;
};

TEST_F(PermissionsTest, TheOwnerOfAHostNeedsNoRoot) {
  give_host_to(kNobody);
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"vm", "create", "vm", "--disk", "64M", "--disk", "64M"},
                                             {"snapshot", "create", "vm", "a"},
                                             {"snapshot", "create", "vm", "b"},
                                             {"snapshot", "revert", "vm", "a"},
                                             {"snapshot", "edit", "vm", "a", "--name", "c"},
                                             {"snapshot", "delete", "vm", "b"},
                                             {"verify", "vm"},
                                             {"vm", "undefine", "vm", "--snapshots", "--storage"}}) {
    const auto result = varve_as(kNobody, command);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(command) << result.out << result.err;
  }
}

TEST_F(PermissionsTest, WhatRootMakesOnAnothersHostIsTheirs) {
  give_host_to(kNobody);
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "by root"});
  EXPECT_EQ(varve_as(kNobody, {"snapshot", "create", "vm", "by nobody"}).exit_code, 0);
  host_.varve_ok({"snapshot", "revert", "vm", "by root"});
  for (const auto& entry : std::filesystem::recursive_directory_iterator(host_.root())) {
    EXPECT_TRUE(owner_and_mode(entry.path()).starts_with("65534:65534 ")) << entry.path();
    if (entry.is_regular_file() && entry.path().native().find("/lock/") == std::string::npos) {
      EXPECT_EQ(owner_and_mode(entry.path()), "65534:65534 384") << entry.path();  // 0600
    }
  }
}

// As in a container that was not given the capability: nothing stops half-way.
TEST_F(PermissionsTest, RootThatMayNotGiveFilesAwayKeepsThem) {
  give_host_to(kNobody);
  const auto without_chown = [&](const std::vector<std::string>& command) {
    std::vector<std::string> words = {"setpriv", "--bounding-set=-chown", VARVE_COMMAND, "-c", "dir:" + host_.root()};
    words.insert(words.end(), command.begin(), command.end());
    return test::run(words);
  };
  EXPECT_EQ(without_chown({"vm", "create", "vm", "--disk", "64M"}).exit_code, 0);
  EXPECT_EQ(without_chown({"snapshot", "create", "vm", "a"}).exit_code, 0);
  EXPECT_EQ(without_chown({"snapshot", "create", "vm", "b"}).exit_code, 0);
  EXPECT_TRUE(owner_and_mode(host_.metadata("vm", "a")).starts_with("0:0 "));
  // What somebody else owns, and would have to keep, is found beforehand.
  give_host_to(kNobody);
  const auto before = host_.contents();
  const auto result = without_chown({"snapshot", "create", "vm", "c"});
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("cannot keep the owner of " + host_.metadata("vm", "b")),
                                HasSubstr("CAP_CHOWN"), HasSubstr("nothing was changed")));
  EXPECT_TRUE(host_.contents() == before) << "something was changed";
}

// What is gone already is no reason to refuse its removal, whoever the directories above it belong to.
TEST_F(PermissionsTest, WhatIsGoneNeedsNoPermissionToBeRemoved) {
  give_host_to(kNobody);
  host_.make_domain("vm");
  std::filesystem::create_directories(host_.root() + "/srv/disks");
  give_host_to(kNobody);
  std::string definition = test::read_whole_file(host_.definition("vm"));
  const std::string from = "/var/lib/libvirt/images/vm.qcow2";
  definition.replace(definition.find(from), from.size(), "/srv/disks/vm.qcow2");
  std::ofstream(host_.definition("vm"), std::ios::trunc) << definition;
  std::filesystem::remove_all(host_.root() + "/srv/disks");
  ASSERT_EQ(::chown((host_.root() + "/srv").c_str(), 0, 0), 0);
  const auto result = varve_as(kNobody, {"-y", "vm", "undefine", "vm", "--storage"});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_FALSE(std::filesystem::exists(host_.definition("vm")));
}

// What can't be looked at is not gone.
TEST_F(PermissionsTest, AClosedDirectoryIsFoundBeforeAnythingIsRemoved) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  give_host_to(kNobody);
  ASSERT_EQ(::chown(snapshots().c_str(), 0, 0), 0);
  ASSERT_EQ(::chmod(snapshots().c_str(), 0700), 0);
  expect_refused(kNobody, {"-y", "vm", "undefine", "vm", "--snapshots", "--storage"}, 1, HasSubstr(snapshots()));
}

// A document is replaced by a rename, which would leave the file that the link leads to as it was.
TEST_F(PermissionsTest, ADefinitionThatIsALinkIsFoundBeforeTheDisksChange) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  std::string definition = test::read_whole_file(host_.definition("vm"));
  const size_t at = definition.find("</name>");
  definition.insert(at + 7, "\n  <title>another</title>");
  const std::string elsewhere = host_.root() + "/etc/libvirt/vm.xml";
  std::ofstream(elsewhere) << definition;
  std::filesystem::remove(host_.definition("vm"));
  std::filesystem::create_symlink("/etc/libvirt/vm.xml", host_.definition("vm"));
  give_host_to(kNobody);
  expect_refused(kNobody, {"-y", "snapshot", "revert", "vm", "a"}, 3,
                 AllOf(HasSubstr("cannot write " + host_.definition("vm") + ": it is a symbolic link"),
                       HasSubstr("nothing was changed")));
}

// It is the file that a link leads to which goes.
TEST_F(PermissionsTest, AnImageThatIsALinkIsRemovedWhereItLies) {
  host_.make_domain("vm", 1);
  std::filesystem::create_directory(host_.root() + "/data");
  std::filesystem::rename(host_.image("vm.qcow2"), host_.root() + "/data/vm.qcow2");
  std::filesystem::create_symlink("/data/vm.qcow2", host_.image("vm.qcow2"));
  give_host_to(kNobody);
  const std::string data = host_.root() + "/data";
  const std::string images = host_.root() + "/var/lib/libvirt/images";
  ASSERT_EQ(::chmod(data.c_str(), 0555), 0);
  expect_refused(kNobody, {"-y", "vm", "undefine", "vm", "--storage"}, 3,
                 HasSubstr("cannot write to the directory " + data));
  ASSERT_EQ(::chmod(data.c_str(), 0755), 0);
  ASSERT_EQ(::chmod(images.c_str(), 0555), 0);
  const auto result = varve_as(kNobody, {"-y", "vm", "undefine", "vm", "--storage"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(std::filesystem::exists(data + "/vm.qcow2"));
}

// Whoever may write to it fills it, whoever it belongs to.
TEST_F(PermissionsTest, AnEmptyImageThatIsThereAlreadyIsFilled) {
  give_host_to(kNobody);
  EXPECT_EQ(varve_as(kNobody, {"vm", "create", "other", "--disk", "64M"}).exit_code, 0);
  const std::string image = host_.image("vm.qcow2");
  std::ofstream(image).flush();
  ASSERT_EQ(::chown(image.c_str(), kDaemon, kDaemon), 0);
  ASSERT_EQ(::chmod(image.c_str(), 0600), 0);
  expect_refused(kNobody, {"vm", "create", "vm", "--disk", "64M"}, 3, HasSubstr("cannot write to " + image));
  ASSERT_EQ(::chmod(image.c_str(), 0666), 0);
  const auto result = varve_as(kNobody, {"vm", "create", "vm", "--disk", "64M"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(owner_and_mode(image), "1:1 438");  // 0666
  host_.expect_clean("vm.qcow2");
}

TEST_F(PermissionsTest, OwnersAndModesOfWhatIsChangedAreKept) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string image = host_.image("vm.qcow2");
  const std::string metadata = host_.metadata("vm", "a");
  for (const std::string& path : {image, metadata, host_.definition("vm")}) {
    ASSERT_EQ(::chown(path.c_str(), kDaemon, kNobody), 0);
    ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  }
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  host_.varve_ok({"snapshot", "revert", "vm", "a"});
  for (const std::string& path : {image, metadata, host_.definition("vm")})
    EXPECT_EQ(owner_and_mode(path), "1:65534 416") << path;
}

TEST_F(PermissionsTest, WhoIsNeitherIsToldWhoseItIs) {
  host_.make_domain("vm");
  expect_refused(kNobody, {"snapshot", "create", "vm", "s"}, 1,
                 AllOf(HasSubstr("Permission denied"),
                       HasSubstr("etc/libvirt/qemu/vm.xml belongs to root:root with mode "
                                 "0600, and this is user nobody"),
                       HasSubstr("run the command as root")));
  ASSERT_EQ(::chmod((host_.root() + "/etc").c_str(), 0700), 0);
  expect_refused(
      kNobody, {"snapshot", "list", "vm"}, 1,
      AllOf(HasSubstr("/etc belongs to root:root with mode 0700"), HasSubstr("can't look into that directory")));
}

TEST_F(PermissionsTest, FilesOfSomebodyElseInOnesOwnHostAreFoundBeforehand) {
  give_host_to(kNobody);
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  // An image.
  const std::string image = host_.image("vm-2.qcow2");
  ASSERT_EQ(::chown(image.c_str(), kDaemon, kDaemon), 0);
  expect_refused(kNobody, {"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("disk vdb"), HasSubstr(image + " belongs to daemon:daemon with mode 0600"),
                       HasSubstr("run the command as daemon or as root"), HasSubstr("nothing was changed")));
  ASSERT_EQ(::chown(image.c_str(), kNobody, kNobody), 0);
  // A document that would be replaced, whose owner only root can keep.
  const std::string metadata = host_.metadata("vm", "a");
  ASSERT_EQ(::chown(metadata.c_str(), kDaemon, kDaemon), 0);
  ASSERT_EQ(::chmod(metadata.c_str(), 0644), 0);
  expect_refused(kNobody, {"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("cannot keep the owner of " + metadata), HasSubstr("run the command as root")));
  // One that can't be read: which snapshot is the current one, nobody knows.
  ASSERT_EQ(::chmod(metadata.c_str(), 0600), 0);
  expect_refused(kNobody, {"snapshot", "create", "vm", "s"}, 1,
                 AllOf(HasSubstr(metadata), HasSubstr("belongs to daemon:daemon with mode 0600")));
  ASSERT_EQ(::chown(metadata.c_str(), kNobody, kNobody), 0);
  // A directory.
  ASSERT_EQ(::chmod(snapshots().c_str(), 0555), 0);
  expect_refused(kNobody, {"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("cannot write to the directory " + snapshots()), HasSubstr("with mode 0555")));
  expect_refused(kNobody, {"--dry-run", "snapshot", "create", "vm", "s"}, 3,
                 HasSubstr("cannot write to the directory"));
  ASSERT_EQ(::chmod(snapshots().c_str(), 0755), 0);
  EXPECT_EQ(varve_as(kNobody, {"snapshot", "create", "vm", "s"}).exit_code, 0);
}

TEST_F(PermissionsTest, ReadOnlyAndImmutableFilesAreNamedWithTheirRemedy) {
  REQUIRES_PROGRAM("mkfs.ext4");
  const test::LoopFileSystem disk("mkfs.ext4 -q", 48 << 20);
  REQUIRES_MOUNTED(disk);
  const test::HostDirectory host(disk / "host");
  host.make_domain("vm");
  const std::string image = host.image("vm.qcow2");
  test::run_ok({"chattr", "+i", image});
  auto result = host.varve({"snapshot", "create", "vm", "s"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("has the attribute 'immutable'"), HasSubstr("chattr -i " + image)));
  test::run_ok({"chattr", "-i", image});
  test::run_ok({"mount", "-o", "remount,ro", disk.path()});
  const auto before = host.contents();
  result = host.varve({"snapshot", "create", "vm", "s"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("Read-only file system"),
                                HasSubstr("the file system mounted on " + disk.path() + " is read-only"),
                                HasSubstr("mount -o remount,rw")));
  host.varve_ok({"snapshot", "list", "vm"});
  host.varve_ok({"where", "vm"});
  EXPECT_TRUE(host.contents() == before);
  test::run_ok({"mount", "-o", "remount,rw", disk.path()});
  host.varve_ok({"snapshot", "create", "vm", "s"});
  // A directory that is a mount of its own, of the same file system.
  const std::string images = host.root() + "/var/lib/libvirt/images";
  test::run_ok({"mount", "--bind", images, images});
  test::run_ok({"mount", "-o", "remount,ro,bind", images});
  result = host.varve({"snapshot", "create", "vm", "t"});
  test::run_ok({"umount", images});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("the file system mounted on " + images + " is read-only"));
}

// A record's temporary file has a name that others could know; whatever they put there is neither followed nor written.
TEST_F(PermissionsTest, NothingIsWrittenThroughWhatOthersPutInTheWay) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string precious = host_.root() + "/precious";
  std::ofstream(precious) << "precious";
  const std::string journal = host_.root() + "/var/lib/varve/journal/vm.journal.new";
  for (const bool hard : {true, false}) {
    std::filesystem::remove(journal);
    if (hard) {
      std::filesystem::create_hard_link(precious, journal);
    } else {
      std::filesystem::create_symlink(precious, journal);
    }
    host_.varve_ok({"snapshot", "create", "vm", hard ? "b" : "c"});
    EXPECT_EQ(test::read_whole_file(precious), "precious");
  }
}

}  // namespace
}  // namespace varve
