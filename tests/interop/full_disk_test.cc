// Disks that are full, or as full as a quota allows: an operation is there entirely or not at all, and what can't
// succeed is refused before anything is touched.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "interop/host_directory.h"
#include "support/loop_file_system.h"

namespace varve {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kSmallBlocks = "mkfs.ext4 -q -m 0 -b 1024";
constexpr uint64_t kSmallDisk = 48 << 20;

class FullDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_ROOT();
    REQUIRES_PROGRAM("mkfs.ext4");
    REQUIRES_PROGRAM("qemu-io");
  }
};

TEST_F(FullDiskTest, WhereverADiskIsFullTheSnapshotIsThereEntirelyOrNotAtAll) {
  const test::LoopFileSystem disk(kSmallBlocks, kSmallDisk);
  REQUIRES_MOUNTED(disk);
  const test::HostDirectory host(disk / "host");
  host.make_domain("vm");
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) host.fill(file, 1, 0, 2);
  host.varve_ok({"snapshot", "create", "vm", "base"});
  int refused = 0;
  int done = 0;
  for (uint64_t leave = 0; leave <= 640 * 1024; leave += 24 * 1024) {
    SCOPED_TRACE(leave);
    const auto before = host.contents();
    disk.fill_up(leave);
    const auto planned = host.varve({"--dry-run", "snapshot", "create", "vm", "s"});
    const auto result = host.varve({"snapshot", "create", "vm", "s"});
    disk.free_up();
    if (result.exit_code == 0) {
      ++done;
    } else {
      ++refused;
      // What is left besides may be too little for the file system's own tables, which nobody can foresee.
      EXPECT_THAT(result.err, testing::AnyOf(HasSubstr("has too little space"), HasSubstr("No space left on device")));
      EXPECT_EQ(planned.exit_code, result.err.find("has too little space") == std::string::npos ? 0 : 3) << planned.err;
      EXPECT_THAT(result.err, HasSubstr("nothing was changed"));
      // Clusters that are free in the image may hold rubbish, and the file may have grown: no reader sees it.
      auto after = host.contents();
      for (const char* file : {"var/lib/libvirt/images/vm.qcow2", "var/lib/libvirt/images/vm-2.qcow2"}) {
        EXPECT_TRUE(after[file].starts_with(before.at(file).substr(0, 512)));
        if (result.exit_code != 3) after[file] = before.at(file);
      }
      EXPECT_TRUE(after == before) << "something was changed";
    }
    host.varve_ok({"vm", "list"});
    const auto points = host.points("vm.qcow2");
    EXPECT_EQ(host.points("vm-2.qcow2"), points);
    EXPECT_EQ(std::filesystem::exists(host.metadata("vm", "s")), points.size() == 2);
    for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
      host.expect_clean(file);
      EXPECT_TRUE(host.is_filled(file, 1, 0, 2));
    }
    if (points.size() == 2) host.varve_ok({"snapshot", "delete", "vm", "s"});
  }
  EXPECT_GT(refused, 5);
  EXPECT_GT(done, 0);
}

// All that an operation needs together counts: each disk alone would fit.
TEST_F(FullDiskTest, EveryOperationIsRefusedBeforehandWithWhatItNeedsAndWhatIsThere) {
  const test::LoopFileSystem disk(kSmallBlocks, kSmallDisk);
  REQUIRES_MOUNTED(disk);
  const test::HostDirectory host(disk / "host");
  host.make_domain("vm", 3);
  for (const char* file : {"vm.qcow2", "vm-2.qcow2", "vm-3.qcow2"}) host.fill(file, 1, 0, 2);
  host.varve_ok({"snapshot", "create", "vm", "base"});
  for (const char* file : {"vm.qcow2", "vm-2.qcow2", "vm-3.qcow2"}) host.fill(file, 2, 1, 2);
  const auto before = host.contents();
  disk.fill_up(48 * 1024);
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"snapshot", "create", "vm", "s"},
                                             {"snapshot", "revert", "vm", "base"},
                                             {"-y", "snapshot", "revert", "vm", "base", "--no-safety"},
                                             {"snapshot", "delete", "vm", "base"},
                                             {"snapshot", "edit", "vm", "base", "--name", "new"},
                                             {"vm", "create", "other", "--disk", "1G"}}) {
    SCOPED_TRACE(testing::PrintToString(command));
    const auto result = host.varve(command);
    EXPECT_EQ(result.exit_code, 3) << result.out << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("has too little space: "), HasSubstr("are available"),
                                  HasSubstr("bytes there, or enlarge it"), HasSubstr("nothing was changed")));
    EXPECT_TRUE(host.contents() == before) << "something was changed";
  }
  disk.free_up();
  host.varve_ok({"snapshot", "revert", "vm", "base"});
}

TEST_F(FullDiskTest, VerbsOfImagesAreRefusedBeforehand) {
  const test::LoopFileSystem disk(kSmallBlocks, kSmallDisk);
  REQUIRES_MOUNTED(disk);
  const std::string image = disk / "disk.qcow2";
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "1G"});
  test::run_ok({"qemu-io", "-f", "qcow2", "-c", "write 0 4M", image});
  const std::string broken = disk / "broken.qcow2";
  test::run_ok({"cp", "--sparse=always", image, broken});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0 4k 4k", broken});
  disk.fill_up(0);
  const auto hashes = [&] { return test::run_ok({"sha256sum", image, broken}); };
  const std::string before = hashes();
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"snapshot", "-c", "s", image},
                                             {"bitmap", "--add", image, "b"},
                                             {"amend", "-f", "qcow2", "-o", "refcount_bits=64", image},
                                             {"resize", "-q", "--preallocation=metadata", image, "2G"},
                                             {"resize", "-q", "--preallocation=falloc", image, "2G"},
                                             {"resize", "-q", "--preallocation=full", image, "2G"},
                                             {"check", "-f", "qcow2", "-r", "all", broken}}) {
    SCOPED_TRACE(testing::PrintToString(command));
    std::vector<std::string> words = {VARVE_COMMAND, "image"};
    words.insert(words.end(), command.begin(), command.end());
    const auto result = test::run(words);
    EXPECT_EQ(result.exit_code, 1) << result.out << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("has too little space: "), HasSubstr("bytes there, or enlarge it")));
    EXPECT_EQ(hashes(), before) << "something was changed";
  }
  disk.free_up();
  EXPECT_EQ(test::run({VARVE_COMMAND, "image", "check", "-q", "-r", "all", broken}).exit_code, 0);
  // That it was tried first is not to be heard.
  const std::string raw = disk / "disk.raw";
  test::run_ok({"qemu-img", "create", "-q", "-f", "raw", raw, "1M"});
  const auto resized = test::run({VARVE_COMMAND, "image", "resize", "-q", raw, "2M"});
  EXPECT_EQ(resized.exit_code, 0);
  EXPECT_EQ(resized.err.find("WARNING"), resized.err.rfind("WARNING")) << resized.err;
  EXPECT_THAT(resized.err, HasSubstr("WARNING: Image format was not specified"));
}

// A quota is not foreseen: the system says EDQUOT when the time comes, and the old state stays.
TEST_F(FullDiskTest, AQuotaThatIsUsedUpLeavesTheOldState) {
  const test::LoopFileSystem disk("mkfs.btrfs -q", 256 << 20);
  REQUIRES_MOUNTED(disk);
  test::run_ok({"btrfs", "quota", "enable", disk.path()});
  test::run_ok({"btrfs", "subvolume", "create", disk / "host"});
  const test::HostDirectory host(disk / "host");
  host.make_domain("vm");
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) host.fill(file, 1, 0, 2);
  host.varve_ok({"snapshot", "create", "vm", "base"});
  int over_quota = 0;
  int done = 0;
  for (uint64_t room = 16; room <= 2048; room *= 2) {  // KiB
    SCOPED_TRACE(room);
    test::run_ok({"btrfs", "filesystem", "sync", disk.path()});
    const auto shown = test::run_ok({"btrfs", "qgroup", "show", "--raw", "-f", host.root()});
    const uint64_t used =
        std::stoull(shown.substr(shown.rfind("0/")).substr(shown.substr(shown.rfind("0/")).find(' ')));
    test::run_ok({"btrfs", "qgroup", "limit", std::to_string(used + room * 1024), host.root()});
    const auto result = host.varve({"snapshot", "create", "vm", "s"});
    test::run_ok({"btrfs", "qgroup", "limit", "none", host.root()});
    if (result.exit_code == 0) {
      ++done;
    } else {
      ++over_quota;
      EXPECT_THAT(result.err, AllOf(HasSubstr("Disk quota exceeded"), HasSubstr("have it raised")));
    }
    host.varve_ok({"vm", "list"});  // finishes what was begun
    const auto points = host.points("vm.qcow2");
    EXPECT_EQ(host.points("vm-2.qcow2"), points);
    EXPECT_EQ(std::filesystem::exists(host.metadata("vm", "s")), points.size() == 2);
    for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) host.expect_clean(file);
    if (points.size() == 2) host.varve_ok({"snapshot", "delete", "vm", "s"});
  }
  EXPECT_GT(over_quota, 2);
  EXPECT_GT(done, 0);
}

}  // namespace
}  // namespace varve
