// What is in the way of an incremental export, or of its import, is said before anything is written; and what goes
// wrong names its cause.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "interop/increment_fixture.h"
#include "support/loop_file_system.h"

namespace varve {
namespace {

namespace fs = std::filesystem;
using test::HostDirectory;
using test::ProcessResult;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class IncrementRefusalTest : public test::IncrementFixture {
 protected:
  // The definition gets another disk, of an image that is there.
  void add_disk(const std::string& file, const std::string& target) const {
    std::string xml = test::read_whole_file(host_.definition(kName));
    const size_t at = xml.find("<disk ");
    ASSERT_NE(at, std::string::npos);
    xml.insert(
        at, "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/" +
                file + "'/><target dev='" + target + "' bus='virtio'/></disk>\n    ");
    test::run_ok({"cp", dir_.write("vm.xml", xml), host_.definition(kName)});
  }
  static std::vector<std::string> traces(const HostDirectory& host) {
    std::vector<std::string> found;
    std::error_code failed;
    for (fs::recursive_directory_iterator at(host.root(), failed), end; at != end && !failed; at.increment(failed)) {
      const std::string name = at->path().filename();
      if (name.find("varve-import") != std::string::npos) found.push_back(at->path());
    }
    return found;
  }
};

TEST_F(IncrementRefusalTest, ABaseWhoseNameAManifestCantRecordIsRefused) {
  const std::string odd = backup("M\xe4rz");
  fs::rename(backup("full"), odd);
  refused({"1", "--since", "erster Stand", "--base", odd}, "is not valid UTF-8");
  fs::rename(odd, backup("März"));
  export_ok({"1", "--since", "erster Stand"});
}

TEST_F(IncrementRefusalTest, NamesThatAreTooLongForADeltaAreRefused) {
  const std::string name(249, 'x');
  test::run_ok({"qemu-img", "create", "-q", "-f", "raw", host_.image(name), "2M"});
  add_disk(name, "vdz");
  refused({"1", "--since", "erster Stand"}, "longer than 255 bytes");
}

TEST_F(IncrementRefusalTest, AFileWithTheNameOfADeltaIsRefused) {
  test::run_ok({"qemu-img", "create", "-q", "-f", "raw", host_.image(image() + ".delta"), "2M"});
  add_disk(image() + ".delta", "vdz");
  host_.fill(image(), 2, 10, 1);
  refused({"1", "--since", "erster Stand"}, "which is another file of the machine");
}

TEST_F(IncrementRefusalTest, APileHasAnEnd) {
  host_.varve_ok({"vm", "create", "small", "--disk", "2M"});
  host_.varve_ok({"snapshot", "create", "small", "s"});
  host_.varve_ok({"vm", "export", "small", backup("0")});
  const auto export_upon = [&](int number) {
    return host_.varve({"vm", "export", "small", backup(std::to_string(number)), "--since", "s", "--base",
                        backup(std::to_string(number - 1))});
  };
  for (int number = 1; number <= 32; ++number) ASSERT_EQ(export_upon(number).exit_code, 0);
  const ProcessResult result = export_upon(33);
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("32 incremental exports stand on one another"));
  EXPECT_FALSE(fs::exists(backup("33")));
  const HostDirectory other;
  other.varve_ok({"vm", "import", backup("32"), "small"});
}

TEST_F(IncrementRefusalTest, AnEmptyTextIsNoRequest) {
  refused({"1", "--since", ""}, "an empty text is no name", 2);
  refused({"1", "--since", "erster Stand", "--base", ""}, "an empty text is no name", 2);
  const HostDirectory other;
  EXPECT_EQ(other.varve({"vm", "import", backup("full"), "--base", ""}).exit_code, 2);
}

TEST_F(IncrementRefusalTest, AHostIsNoPlaceForAnIncrementAndViceVersa) {
  fs::create_directories(backup("host"));
  const HostDirectory there(backup("host"));
  there.make_domain(kName, 1);
  refused({"host", "--since", "erster Stand", "--base", backup("full")}, "is a host that has something of");
  fs::remove_all(backup("host"));
  fs::create_directories(backup("host/var/lib/varve/transfer"));
  dir_.write("Sicherung ä/host/var/lib/varve/transfer/" + std::string(kName) + ".json", "{}");
  refused({"host", "--since", "erster Stand", "--base", backup("full")}, "is a host that has something of");
  export_ok({"1", "--since", "erster Stand"});
  const ProcessResult moved = host_.varve({"vm", "move", kName, "--to", "dir:" + backup("1")});
  EXPECT_EQ(moved.exit_code, 3);
  EXPECT_THAT(moved.err, HasSubstr("has an incremental export of 'Büro PC' already"));
  EXPECT_THAT(HostDirectory(backup("1")).varve({"vm", "import", backup("full")}).err,
              HasSubstr("has an incremental export of 'Büro PC' already"));
}

TEST_F(IncrementRefusalTest, WhoWorksInAnExportIsToldWhatThatCosts) {
  const HostDirectory there(backup("full"));
  const std::vector<std::string> command = {"snapshot", "create", kName, "dort"};
  EXPECT_THAT(there.varve({"--dry-run", "snapshot", "create", kName, "dort"}).out, HasSubstr("is an export here"));
  EXPECT_THAT(there.varve(command).err, HasSubstr("nor an incremental export that stands on it"));
  EXPECT_THAT(host_.varve(command).err, Not(HasSubstr("export")));
}

TEST_F(IncrementRefusalTest, AnImportIsToldBeforehandWhatIsInItsWay) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  const auto in_the_way = [&](const std::string& path, const std::string& reason) {
    for (const bool dry : {true, false}) {
      const HostDirectory other;
      fs::create_directories(fs::path(other.root() + path).parent_path());
      test::run_ok({"touch", other.root() + path});
      std::vector<std::string> command = {"vm", "import", backup("1")};
      if (dry) command.insert(command.begin(), "--dry-run");
      const ProcessResult result = other.varve(command);
      EXPECT_EQ(result.exit_code, 3) << path;
      EXPECT_THAT(result.err, HasSubstr(reason));
      EXPECT_THAT(traces(other), IsEmpty());
    }
  };
  in_the_way("/var/lib/libvirt/images/" + second_image(), second_image() + " is there already");
  in_the_way("/var/lib/libvirt/qemu/snapshot/" + std::string(kName) + "/alt.xml", "there are snapshots of a domain");
  const HostDirectory other;
  fs::create_directories(other.root() + "/elsewhere");
  test::run_ok({"touch", other.root() + "/elsewhere/" + image()});
  EXPECT_THAT(other.varve({"--dry-run", "vm", "import", backup("1"), "--images", "/elsewhere"}).err,
              HasSubstr("is there already"));
}

TEST_F(IncrementRefusalTest, TheDamagedFileIsNamed) {
  host_.fill(image(), 2, 10, 4);
  export_ok({"1", "--since", "erster Stand"});
  host_.fill(image(), 3, 30, 4);
  export_ok({"2", "--since", "erster Stand", "--base", backup("1")});
  // In the data of the delta in the middle.
  const std::string damaged = delta("1", image());
  const auto size = fs::file_size(damaged);
  test::run_ok({"cp", damaged, dir_ / "kept"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x55 " + std::to_string(size - 65536 * 8) + " 4k", damaged});
  const HostDirectory other;
  const ProcessResult result = other.varve({"vm", "import", backup("2")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr(damaged + " is not what the manifest in " + backup("1") + " says"));
  EXPECT_THAT(result.err, HasSubstr("cd '" + backup("1") + "' && sha256sum -c 'Büro PC.sha256'"));
  EXPECT_THAT(result.err, Not(HasSubstr("goes on with")));
  EXPECT_THAT(traces(other), IsEmpty());
  refused({"3", "--since", "erster Stand", "--base", backup("2")}, damaged + " is not what the manifest", 1);
  test::run_ok({"cp", dir_ / "kept", damaged});
  expect_comes_back("2");
}

TEST_F(IncrementRefusalTest, ADirectoryWithoutAMarkIsBegunAnew) {
  host_.fill(image(), 2, 10, 1);
  fs::create_directories(backup("1") + "/" + kName + ".increment");
  export_ok({"1", "--since", "erster Stand"});
  expect_comes_back("1");
  fs::create_directories(backup("2") + "/" + kName + ".increment/etc");
  refused({"2", "--since", "erster Stand"}, "is there already");
}

TEST_F(IncrementRefusalTest, AnImportThatHasDefinedTheMachineComesToItsEnd) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  bool was_stopped = false;
  for (int attempt = 0; attempt < 10 && !was_stopped; ++attempt) {
    const HostDirectory other;
    const std::string state = other.root() + "/var/lib/varve/transfer/" + kName + ".json";
    {
      test::BackgroundProcess command({VARVE_COMMAND, "-c", "dir:" + other.root(), "vm", "import", backup("1")});
      while (!fs::exists(other.definition(kName))) std::this_thread::yield();
      command.kill();
    }
    was_stopped = fs::exists(state);
    if (!was_stopped) continue;  // it had come to its end
    other.varve_ok({"vm", "import", backup("1")});
    EXPECT_FALSE(fs::exists(state));
    EXPECT_THAT(traces(other), IsEmpty());
    expect_same(other);
    EXPECT_THAT(other.varve({"vm", "import", backup("1")}).err, HasSubstr("there is a domain"));
  }
}

TEST_F(IncrementRefusalTest, WhatComesInTheWayOfAnImportMeanwhileCostsNothing) {
  host_.fill(image(), 7, 0, 60);
  export_ok({"1", "--since", "erster Stand"});
  const HostDirectory other;
  const std::string obstacle = other.image(second_image());
  {
    test::BackgroundProcess command({VARVE_COMMAND, "-c", "dir:" + other.root(), "vm", "import", backup("1")});
    while (traces(other).empty()) std::this_thread::yield();
    test::run_ok({"touch", obstacle});
    EXPECT_EQ(command.close_and_wait(), 3);
  }
  ASSERT_THAT(traces(other), SizeIs(1));
  const std::string put_together = traces(other)[0] + "/var/lib/libvirt/images/" + image();
  EXPECT_TRUE(fs::exists(put_together));
  EXPECT_FALSE(fs::exists(other.definition(kName)));
  fs::remove(obstacle);
  other.varve_ok({"vm", "import", backup("1")});
  EXPECT_THAT(traces(other), IsEmpty());
  expect_same(other);
}

TEST_F(IncrementRefusalTest, AHostWithTooLittleSpaceIsLeftAlone) {
  test::LoopFileSystem drive("mkfs.ext4 -q", 24 << 20);
  REQUIRES_MOUNTED(drive);
  export_ok({"1", "--since", "erster Stand"});
  const HostDirectory other(drive / "host");
  fs::create_directories(other.root());
  const ProcessResult result = other.varve({"vm", "import", backup("1")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, Not(HasSubstr("what is put together")));
  EXPECT_THAT(traces(other), IsEmpty());
}

TEST_F(IncrementRefusalTest, BasesAreFoundByTheirChecksums) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  host_.fill(image(), 3, 12, 1);
  export_ok({"2", "--since", "erster Stand", "--base", backup("1")});
  fs::rename(backup("full"), dir_ / "full");
  const HostDirectory other;
  EXPECT_THAT(other.varve({"vm", "import", backup("2")}).err, HasSubstr("once for each that has moved"));
  expect_comes_back("2", {"--base", dir_ / "full"});
  fs::rename(backup("1"), dir_ / "1");
  expect_comes_back("2", {"--base", dir_ / "full", "--base", dir_ / "1"});
  export_ok({"new"});  // of another time
  EXPECT_THAT(other.varve({"vm", "import", backup("2"), "--base", backup("new")}).err,
              HasSubstr("stands on an earlier"));
  EXPECT_THAT(
      other.varve({"vm", "import", backup("2"), "--base", dir_ / "full", "--base", dir_ / "1", "--base", backup("new")})
          .err,
      HasSubstr("is none that the one in"));
}

}  // namespace
}  // namespace varve
