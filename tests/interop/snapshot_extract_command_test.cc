// `varve snapshot extract`, beside what qemu-img makes of the same snapshot.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/host_directory.h"

namespace varve {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class SnapshotExtractCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    host_.fill("vm.qcow2", 1, 3, 9);
    host_.fill("vm-2.qcow2", 2);
    host_.varve_ok({"snapshot", "create", "vm", kSnapshot});
    host_.fill("vm.qcow2", 3);
    test::run_ok(
        {"qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", kSnapshot, host_.image("vm.qcow2"), expected_});
  }
  bool is_expected(const std::string& path, const std::string& format) const {
    return test::run({"qemu-img", "compare", "-f", format, "-F", "raw", path, expected_}).exit_code == 0;
  }

  static constexpr const char* kSnapshot = "vor dem \"Umzug\", a=b";
  test::HostDirectory host_;
  test::TempDir dir_;
  std::string expected_ = dir_ / "expected";
};

TEST_F(SnapshotExtractCommandTest, TheDiskOfThatPointIsAnImageOfItsOwn) {
  const auto before = host_.contents();
  host_.varve_ok({"snapshot", "extract", "vm", kSnapshot, dir_ / "out, 'ü'.qcow2", "--disk", "vda"});
  EXPECT_TRUE(is_expected(dir_ / "out, 'ü'.qcow2", "qcow2"));
  EXPECT_EQ(test::run({"qemu-img", "check", "-f", "qcow2", dir_ / "out, 'ü'.qcow2"}).exit_code, 0);
  const auto said = host_.varve_json({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw", "--disk", "vda"});
  EXPECT_EQ(said["file"], dir_ / "out.raw");
  EXPECT_EQ(said["format"], "raw");
  EXPECT_EQ(said["disk"], "vda");
  EXPECT_EQ(said["size"], 64 << 20);
  EXPECT_TRUE(test::read_whole_file(dir_ / "out.raw") == test::read_whole_file(expected_));
  host_.varve_ok({"snapshot", "extract", "vm", kSnapshot, dir_ / "copy", "--disk", "vda", "--format", "qcow2"});
  EXPECT_TRUE(is_expected(dir_ / "copy", "qcow2"));
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(SnapshotExtractCommandTest, WhatIsThereIsNotOverwritten) {
  dir_.write("out.raw", "precious");
  const auto result = host_.varve({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw", "--disk", "vda"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("is there already"));
  EXPECT_EQ(test::read_whole_file(dir_ / "out.raw"), "precious");
}

TEST_F(SnapshotExtractCommandTest, WhatIsNotClearIsAsked) {
  const auto several = host_.varve({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw"});
  EXPECT_EQ(several.exit_code, 2);
  EXPECT_THAT(several.err, AllOf(HasSubstr("several disks: vda, vdb"), HasSubstr("--disk vda")));
  const auto no_format = host_.varve({"snapshot", "extract", "vm", kSnapshot, dir_ / "out", "--disk", "vda"});
  EXPECT_EQ(no_format.exit_code, 2);
  EXPECT_THAT(no_format.err, HasSubstr("--format"));
  EXPECT_EQ(host_.varve({"snapshot", "extract", "vm", "nope", dir_ / "out.raw"}).exit_code, 4);
  const auto no_directory = host_.varve({"snapshot", "extract", "vm", kSnapshot, dir_ / "no/out.raw", "--disk", "vda"});
  EXPECT_EQ(no_directory.exit_code, 4);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out.raw"));
}

TEST_F(SnapshotExtractCommandTest, ADryRunMakesNothing) {
  const std::string said =
      host_.varve_ok({"--dry-run", "snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw", "--disk", "vda"});
  EXPECT_THAT(said, AllOf(HasSubstr("Would extract disk vda"), HasSubstr("64 MiB")));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out.raw"));
}

TEST_F(SnapshotExtractCommandTest, AnImageThatIsInUseIsReadAllTheSame) {
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm.qcow2")});
  user.write("write -P 5 0 16M\n");
  ASSERT_TRUE(user.wait_for("wrote 16777216"));
  host_.varve_ok({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.qcow2", "--disk", "vda"});
  EXPECT_TRUE(is_expected(dir_ / "out.qcow2", "qcow2"));
}

// Below ROOT, "/var/…" means a file below ROOT; opened from here, it would be one of this machine's.
TEST_F(SnapshotExtractCommandTest, ABackingFileOfThisMachineIsNotReadForOneBelowRoot) {
  const std::string secret = dir_.write("secret", std::string(1 << 20, 's'));
  std::filesystem::create_directories(host_.root() + dir_.path());
  std::filesystem::copy_file(secret, host_.root() + secret);
  test::run_ok({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, host_.image("vm.qcow2")});
  const auto result = host_.varve({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw", "--disk", "vda"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("names its backing file"), HasSubstr("rebase -u")));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out.raw"));
  // By a name that means the same from everywhere, it is part of the disk.
  std::filesystem::copy_file(secret, host_.image("base.raw"));
  test::run_ok({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw", host_.image("vm.qcow2")});
  host_.varve_ok({"snapshot", "extract", "vm", kSnapshot, dir_ / "out.raw", "--disk", "vda"});
  EXPECT_TRUE(test::read_whole_file(dir_ / "out.raw").substr(0, 1 << 20) == std::string(1 << 20, 's'));
}

}  // namespace
}  // namespace varve
