// `varve vm export --since`: what has changed since an earlier export, and `vm import` of that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "interop/increment_fixture.h"
#include "support/loop_file_system.h"

namespace varve {
namespace {

namespace fs = std::filesystem;
using test::HostDirectory;
using test::ProcessResult;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class IncrementalExportTest : public test::IncrementFixture {};

TEST_F(IncrementalExportTest, WhatChangedIsWrittenAndComesBack) {
  host_.fill(image(), 2, 10, 1);
  snapshot("zweiter Stand");
  host_.fill(image(), 3, 30, 1);
  const auto before = host_.contents();
  const auto base = HostDirectory(backup("full")).contents();
  const json result = export_ok({"dienstag", "--since", "erster Stand", "--verify"});
  EXPECT_EQ(host_.contents(), before);
  EXPECT_EQ(HostDirectory(backup("full")).contents(), base);
  EXPECT_EQ(result["base"], backup("full"));
  EXPECT_EQ(file(result, image())["stored"], "delta");
  // The delta is about as large as the change: 2 MiB of data, and tables of the two images.
  EXPECT_LE(file(result, image())["delta"]["size_bytes"].get<uint64_t>(), uint64_t{4} << 20);
  EXPECT_EQ(file(result, second_image())["stored"], "delta");  // its tables have another snapshot
  EXPECT_LE(file(result, second_image())["delta"]["size_bytes"].get<uint64_t>(), uint64_t{1} << 20);
  check_sums("dienstag");
  expect_converted("dienstag", image());
  expect_converted("dienstag", second_image());
  expect_comes_back("dienstag");
}

TEST_F(IncrementalExportTest, WhatIsUnchangedCostsNothing) {
  host_.fill(image(), 2, 10, 1);
  const json result = export_ok({"dienstag", "--since", "erster Stand"});
  EXPECT_EQ(file(result, second_image())["stored"], "unchanged");
  EXPECT_FALSE(fs::exists(delta("dienstag", second_image())));
  EXPECT_FALSE(fs::exists(stored("dienstag", "/var/lib/libvirt/images/" + second_image())));
  const json none = export_ok({"mittwoch", "--since", "erster Stand"});
  EXPECT_EQ(none["base"], backup("dienstag"));
  EXPECT_EQ(file(none, image())["stored"], "unchanged");
  EXPECT_LE(none["written_bytes"].get<uint64_t>(), 10000u);
  expect_comes_back("mittwoch");
}

TEST_F(IncrementalExportTest, IncrementsStackAndSnapshotsComeAndGo) {
  host_.fill(image(), 2, 10, 4);
  snapshot("zwei");
  export_ok({"1", "--since", "erster Stand"});
  host_.varve_ok({"snapshot", "delete", kName, "erster Stand"});
  host_.fill(image(), 4, 12, 1);
  host_.varve_ok({"snapshot", "revert", kName, "zwei", "--no-safety"});
  host_.fill(second_image(), 5, 0, 2);
  snapshot("drei");
  const json result = export_ok({"2", "--since", "zwei"});
  EXPECT_EQ(result["base"], backup("1"));
  expect_converted("2", image());
  expect_converted("2", second_image());
  check_sums("2");
  expect_comes_back("2");
  host_.fill(image(), 0, 0, 8);
  test::run_ok({"qemu-io", "-f", "qcow2", "-c", "write -z -u 16M 4M", host_.image(image())});
  export_ok({"3", "--since", "drei", "--base", backup("2")});
  expect_converted("3", image());
  expect_comes_back("3");
  // Taken elsewhere together; and the base alone.
  fs::rename(dir_ / "Sicherung ä", dir_ / "elsewhere");
  fs::create_directory(dir_ / "Sicherung ä");
  fs::rename(dir_ / "elsewhere/3", backup("3"));
  fs::create_directory(dir_ / "x");
  const HostDirectory other;
  EXPECT_THAT(other.varve({"vm", "import", backup("3")}).err, HasSubstr("--base DIRECTORY"));
  expect_comes_back("3", {"--base", dir_ / "elsewhere/2"});
}

TEST_F(IncrementalExportTest, DisksOfOtherSizesAndKindsComeBack) {
  host_.varve_ok({"vm", "create", "raw", "--disk", "8M,format=raw", "--disk", "64M"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 1 0 3M", host_.image("raw.img")});
  host_.varve_ok({"snapshot", "create", "raw", "s", "--disk", "vda=no"});
  host_.varve_ok({"vm", "export", "raw", backup("full")});
  const auto round = [&](const std::string& name, uint64_t size) {
    fs::resize_file(host_.image("raw.img"), size);
    const json result = host_.varve_json({"vm", "export", "raw", backup(name), "--since", "s"});
    EXPECT_EQ(file(result, "raw.img")["stored"], "delta");
    EXPECT_LE(file(result, "raw.img")["delta"]["size_bytes"].get<uint64_t>(), 500000u);
    const HostDirectory other;
    other.varve_ok({"vm", "import", backup(name), "raw"});
    test::run_ok({"cmp", host_.image("raw.img"), other.image("raw.img")});
    test::run_ok({"cmp", host_.image("raw-2.qcow2"), other.image("raw-2.qcow2")});
  };
  round("larger", 20000001);
  round("shorter", 2000000);
  round("larger again", 7 << 20);
  host_.varve_ok({"image", "resize", "-f", "qcow2", host_.image("raw-2.qcow2"), "128M"});
  round("qcow2 too", 6 << 20);
}

TEST_F(IncrementalExportTest, ADiskThatIsNewGoesAlongWhole) {
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", host_.image("neu.qcow2"), "64M"});
  host_.fill("neu.qcow2", 7, 0, 2);
  std::string xml = test::read_whole_file(host_.definition(kName));
  const size_t at = xml.find("<disk ");
  ASSERT_NE(at, std::string::npos);
  xml.insert(at,
             "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
             "<source file='/var/lib/libvirt/images/neu.qcow2'/><target dev='vdz' bus='virtio'/></disk>\n    ");
  test::run_ok({"cp", dir_.write("vm.xml", xml), host_.definition(kName)});
  const json result = export_ok({"1", "--since", "erster Stand"});
  EXPECT_EQ(file(result, "neu.qcow2")["stored"], "whole");
  check_sums("1");
  const HostDirectory other;
  other.varve_ok({"vm", "import", backup("1")});
  EXPECT_TRUE(other.is_filled("neu.qcow2", 7, 0, 2));
  test::run_ok({"cmp", host_.image(image()), other.image(image())});
}

TEST_F(IncrementalExportTest, ASnapshotThatIsNotInBothIsRefused) {
  refused({"1", "--since", "kein"}, "no export of 'Büro PC' with the snapshot 'kein'", 4);
  refused({"1", "--since", "kein", "--base", backup("full")}, "has no snapshot 'kein'", 4);
  snapshot("neu");
  refused({"1", "--since", "neu"}, "full has erster Stand", 4);
  refused({"1", "--since", "neu", "--base", backup("full")}, "there are: erster Stand");
  refused({"1", "--since", "erster Stand", "--base", backup("nichts")}, "cannot be used", 4);
  // One of the same name, made anew: by its time, and, within the same second, by its point.
  host_.varve_ok({"snapshot", "delete", kName, "erster Stand"});
  snapshot("erster Stand");
  refused({"1", "--since", "erster Stand"}, "erster Stand");
  EXPECT_EQ(try_export({"full.varve", "--since", "neu"}).exit_code, 1);
  EXPECT_THAT(try_export({"full.varve", "--since", "neu"}).err, HasSubstr("without --since, one file takes all"));
  EXPECT_EQ(try_export({"1", "--base", backup("full")}).exit_code, 2);
}

TEST_F(IncrementalExportTest, AnotherMachineOfTheSameNameIsNoBase) {
  const HostDirectory other;
  other.make_domain(kName, 2);
  other.varve_ok({"snapshot", "create", kName, "erster Stand"});
  const ProcessResult result =
      other.varve({"vm", "export", kName, backup("1"), "--since", "erster Stand", "--base", backup("full")});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("is of another machine that has the name"));
}

TEST_F(IncrementalExportTest, TheTwoStayTogether) {
  refused({"../anderswo/1", "--since", "erster Stand", "--base", backup("full")}, "does not lie beside");
  refused({"full/inside", "--since", "erster Stand", "--base", backup("full")}, "does not lie beside");
  refused({"Jahr/1", "--since", "erster Stand", "--base", backup("full")}, "does not lie beside");
  fs::create_directory(backup("Jahr"));
  fs::rename(backup("full"), backup("Jahr/full"));
  export_ok({"1", "--since", "erster Stand", "--base", backup("Jahr/full")});
  expect_comes_back("1");
}

TEST_F(IncrementalExportTest, NothingIsOverwrittenAndADryRunChangesNothing) {
  host_.fill(image(), 2, 10, 1);
  refused({"full", "--since", "erster Stand", "--base", backup("full")}, "does not lie beside");
  refused({"1", "--since", "erster Stand", "--dry-run"}, "", 0);
  EXPECT_THAT(host_.varve_ok({"--dry-run", "vm", "export", kName, backup("1"), "--since", "erster Stand"}),
              HasSubstr("write what differs of"));
  EXPECT_FALSE(fs::exists(backup("1")));
  export_ok({"1", "--since", "erster Stand"});
  const auto before = HostDirectory(backup("1")).contents();
  refused({"1", "--since", "erster Stand"}, "is there already");
  refused({"1"}, "has an incremental export of 'Büro PC' already");
  EXPECT_EQ(HostDirectory(backup("1")).contents(), before);
  // Without its manifest it is nobody's to remove.
  fs::remove(manifest_of("1"));
  refused({"1", "--since", "erster Stand"}, "is there already");
}

TEST_F(IncrementalExportTest, AnIncrementIsNoHostAndSaysSo) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  const HostDirectory there(backup("1"));
  EXPECT_THAT(there.varve_json({"vm", "list"}), IsEmpty());
  for (const auto& command : std::vector<std::vector<std::string>>{
           {"snapshot", "list", kName}, {"vm", "show", kName}, {"vm", "move", kName, "--to", "dir:" + dir_ / "to"}}) {
    const ProcessResult result = there.varve(command);
    EXPECT_EQ(result.exit_code, 4);
    EXPECT_THAT(result.err, HasSubstr("this is an incremental export of it, which is no host"));
  }
}

TEST_F(IncrementalExportTest, ADamagedBaseIsFoundWhenTheIncrementIsMade) {
  host_.fill(image(), 2, 10, 1);
  const std::string base = backup("full") + "/var/lib/libvirt/images/" + image();
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x55 6M 4k", base});
  refused({"1", "--since", "erster Stand"}, "is not what the manifest of the earlier export says", 1);
  fs::resize_file(base, fs::file_size(base) - 65536);
  refused({"1", "--since", "erster Stand"}, "the export was cut short, or changed afterwards");
}

TEST_F(IncrementalExportTest, WhatBecameOfTheBaseAfterwardsIsNoticed) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  const auto import_is_refused = [&](const std::string& reason) {
    const HostDirectory other;
    const ProcessResult result = other.varve({"vm", "import", backup("1")});
    EXPECT_NE(result.exit_code, 0);
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_FALSE(fs::exists(other.definition(kName)));
    EXPECT_FALSE(fs::exists(other.image(image())));
    for (const auto& [path, contents] : other.contents()) EXPECT_THAT(path, Not(HasSubstr("varve-import")));
  };
  // A byte that the increment does not have itself.
  const std::string base = backup("full") + "/var/lib/libvirt/images/" + image();
  test::run_ok({"cp", base, dir_ / "kept"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x55 6M 4k", base});
  import_is_refused(base + " is not what the manifest in " + backup("full") + " says");
  test::run_ok({"cp", dir_ / "kept", base});
  expect_comes_back("1");
  std::string manifest = test::read_whole_file(manifest_of("full"));
  dir_.write("Sicherung ä/full/" + std::string(kName) + ".manifest.json", manifest + "\n");
  import_is_refused("its manifest is another one");
  fs::rename(backup("full"), backup("weg"));
  import_is_refused("stands on an earlier one");
}

TEST_F(IncrementalExportTest, AManifestThatLiesIsRefusedBeforeAnythingIsWritten) {
  host_.fill(image(), 2, 10, 1);
  export_ok({"1", "--since", "erster Stand"});
  const std::string good = test::read_whole_file(manifest_of("1"));
  const auto lie = [&](const std::string& from, const std::string& to, const std::string& reason) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    dir_.write("Sicherung ä/1/" + std::string(kName) + ".manifest.json", text);
    const HostDirectory other;
    const ProcessResult result = other.varve({"vm", "import", backup("1")});
    EXPECT_NE(result.exit_code, 0) << reason;
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_FALSE(fs::exists(other.definition(kName)));
    EXPECT_FALSE(fs::exists(other.image(image())));
  };
  lie("\"../full\"", "\"../../Sicherung ä/full\"", "is no path to a directory beside its own");
  lie("\"../full\"", "\"/etc\"", "is no path to a directory beside its own");
  lie("\"../full\"", "\"../1\"", "stands on itself");
  lie("\"version\": 2", "\"version\": 1", "this is an incremental export of it, which is no host");
  lie("\"version\": 2", "\"version\": 3", "has version 3");
  lie("\"manifest_sha256\": \"", "\"manifest_sha256\": \"0", "has no checksum");
  lie("\"stored\": \"delta\"", "\"stored\": \"unchanged\"", "is another one there");
  lie("\"path\": \"var/lib/libvirt/images", "\"path\": \"../images", "is no path below its directory");
  lie("\"path\": \"var/lib/libvirt/images/Büro PC.qcow2", "\"path\": \"var/lib/varve/x",
      "which is no part of a machine");
  const std::string size = "\"size_bytes\": " + std::to_string(fs::file_size(host_.image(image())));
  lie(size, "\"size_bytes\": 4611686018427387904", "its disk has");
  dir_.write("Sicherung ä/1/" + std::string(kName) + ".manifest.json", good);
  // Another name in the delta, which QEMU would follow.
  test::run_ok({"qemu-img", "rebase", "-u", "-F", "raw", "-b", "/etc/passwd", delta("1", image())});
  const HostDirectory other;
  EXPECT_THAT(other.varve({"vm", "import", backup("1")}).err, HasSubstr("it stands on '/etc/passwd'"));
}

TEST_F(IncrementalExportTest, WhatIsInTheWayOfAnImportIsSaidFirst) {
  export_ok({"1", "--since", "erster Stand"});
  const ProcessResult result = host_.varve({"vm", "import", backup("1")});
  EXPECT_THAT(result.err, HasSubstr("there is a domain"));
  const HostDirectory other;
  fs::create_directories(other.root());
  EXPECT_THAT(other.varve_ok({"--dry-run", "vm", "import", backup("1")}), HasSubstr("put /var/lib/libvirt/images"));
  EXPECT_THAT(other.contents(), IsEmpty());
  EXPECT_EQ(other.varve({"vm", "import", backup("full"), "--base", backup("1")}).exit_code, 2);
}

TEST_F(IncrementalExportTest, OverlaysGoOnStandingOnTheirFiles) {
  fs::create_directories(host_.root() + "/srv");
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", host_.image(image()),
                host_.root() + "/srv/top.qcow2"});
  test::run_ok({"qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "/var/lib/libvirt/images/" + image(),
                host_.root() + "/srv/top.qcow2"});
  host_.varve_ok({"vm", "create", "clone", "--disk", "/srv/top.qcow2,format=qcow2"});
  host_.varve_ok({"snapshot", "create", "clone", "s"});
  host_.varve_ok({"vm", "export", "clone", backup("clone")});
  const json result = host_.varve_json({"vm", "export", "clone", backup("1"), "--since", "s"});
  // The copy's backing file has a relative name, here as there.
  EXPECT_EQ(file(result, "top.qcow2")["stored"], "unchanged");
  EXPECT_EQ(file(result, image())["stored"], "unchanged");
  const HostDirectory other;
  other.varve_ok({"vm", "import", backup("1"), "clone"});
  EXPECT_EQ(other.varve_json({"verify", "clone"})["status"], "ok");
}

// However far it came.
TEST_F(IncrementalExportTest, AnInterruptedOneBeginsAnew) {
  host_.fill(image(), 7, 0, 60);
  host_.fill(second_image(), 8, 0, 60);
  {
    test::BackgroundProcess command(
        {VARVE_COMMAND, "-c", "dir:" + host_.root(), "vm", "export", kName, backup("1"), "--since", "erster Stand"});
    while (!fs::exists(delta("1", image())) && !fs::exists(manifest_of("1"))) std::this_thread::yield();
    command.kill();
  }
  const bool was_whole = fs::exists(manifest_of("1"));
  const ProcessResult result = try_export({"1", "--since", "erster Stand"});
  EXPECT_EQ(result.exit_code, was_whole ? 3 : 0) << result.err;
  check_sums("1");
  expect_comes_back("1");
}

// However far it came.
TEST_F(IncrementalExportTest, AnInterruptedImportIsGoneOnWith) {
  host_.fill(image(), 7, 0, 60);
  host_.fill(second_image(), 8, 0, 60);
  export_ok({"1", "--since", "erster Stand"});
  for (const std::string& until : {second_image(), image(), image() + ".varve-part"}) {
    SCOPED_TRACE(until);
    const HostDirectory other;
    const std::string images = other.root() + "/var/lib/libvirt/images";
    const auto came_so_far = [&] {
      std::error_code failed;
      for (fs::recursive_directory_iterator at(images, failed), end; at != end && !failed; at.increment(failed)) {
        if (at->path().filename() == until) return true;
      }
      return fs::exists(other.definition(kName), failed);
    };
    {
      test::BackgroundProcess command({VARVE_COMMAND, "-c", "dir:" + other.root(), "vm", "import", backup("1")});
      while (!came_so_far()) std::this_thread::yield();
      command.kill();
    }
    if (!fs::exists(other.definition(kName))) other.varve_ok({"vm", "import", backup("1")});
    expect_same(other);
    for (const auto& [path, contents] : other.contents()) EXPECT_THAT(path, Not(HasSubstr("varve-part")));
  }
}

TEST_F(IncrementalExportTest, AFullDriveLeavesNothing) {
  test::LoopFileSystem drive("mkfs.ext4 -q", 64 << 20);
  REQUIRES_MOUNTED(drive);
  host_.varve_ok({"vm", "export", kName, drive / "full"});
  host_.fill(image(), 7, 0, 60);
  const ProcessResult result = host_.varve({"vm", "export", kName, drive / "1", "--since", "erster Stand"});
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, HasSubstr("nothing is left of it"));
  EXPECT_FALSE(fs::exists(drive / "1"));
  host_.varve_ok({"vm", "export", kName, backup("2"), "--since", "erster Stand", "--base", backup("full")});
  expect_comes_back("2");
}

}  // namespace
}  // namespace varve
