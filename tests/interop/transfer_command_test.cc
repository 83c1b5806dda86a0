// `varve vm export`, `vm import`, `vm move`: a machine with its snapshots goes elsewhere and is whole there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <regex>
#include <thread>

#include "interop/host_directory.h"
#include "support/loop_file_system.h"

namespace varve {
namespace {

using nlohmann::json;
using test::HostDirectory;
using test::LoopFileSystem;
using test::ProcessResult;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr const char* kName = "Büro PC";

class TransferCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain(kName);
    host_.fill(image(), 1);
    host_.varve_ok({"snapshot", "create", kName, "first"});
    host_.fill(image(), 2);
    host_.varve_ok({"snapshot", "create", kName, "zweiter Stand ä"});
    host_.varve_ok({"snapshot", "revert", kName, "first", "--no-safety"});
    host_.fill(image(), 3, 4, 4);
    host_.varve_ok({"snapshot", "create", kName, "branch"});
    host_.fill(image(), 4);
  }
  // Without Varve.
  static std::string check_sums(const std::string& directory, const std::string& domain = kName) {
    test::RunOptions there;
    there.working_directory = directory;
    return test::run_ok({"sha256sum", "--strict", "-c", domain + ".sha256"}, there);
  }
  static std::string image() { return std::string(kName) + ".qcow2"; }

  // The machine of SetUp(), with everything in it.
  static void expect_whole(const HostDirectory& host, const std::string& images = "/var/lib/libvirt/images") {
    const json report = host.varve_json({"verify", kName});
    EXPECT_EQ(report["status"], "ok") << report.dump(2);
    const json list = host.varve_json({"snapshot", "list", kName});
    ASSERT_EQ(list.size(), 3u);
    EXPECT_EQ(host.varve_ok({"snapshot", "list", kName, "--tree"}),
              "first\n  |\n  +- branch  (current)\n  +- zweiter Stand ä\n    \n");
    const std::string file = host.root() + images + "/" + image();
    test::run_ok({"qemu-img", "check", file});
    const auto holds = [&](const std::string& snapshot, const char* pattern) {
      host.varve_ok({"snapshot", "revert", kName, snapshot, "--no-safety"});
      EXPECT_THAT(test::run_ok({"qemu-io", "-r", "-c", pattern, file}), Not(HasSubstr("verification failed")))
          << snapshot << " " << pattern;
    };
    EXPECT_THAT(test::run_ok({"qemu-io", "-r", "-c", "read -P 4 0 8M", file}), Not(HasSubstr("failed")));
    holds("first", "read -P 1 0 8M");
    holds("zweiter Stand ä", "read -P 2 0 8M");
    holds("branch", "read -P 3 4M 4M");
  }

  HostDirectory host_;
  HostDirectory other_;
  test::TempDir dir_;
};

TEST_F(TransferCommandTest, AnExportIsPlainWholeAndCanBeWorkedWith) {
  const std::string drive = dir_ / "drive";
  const auto before = host_.contents();
  const json result = host_.varve_json({"vm", "export", kName, drive, "--verify"});
  EXPECT_EQ(result["files"].size(), 6u);  // definition, three snapshots, two images
  EXPECT_EQ(host_.contents(), before);
  EXPECT_THAT(check_sums(drive), HasSubstr("var/lib/libvirt/images/Büro PC.qcow2: OK"));
  for (const json& file : result["files"]) {
    if (file["role"] == "image") continue;
    EXPECT_EQ(test::read_whole_file(drive + file["path"].get<std::string>()),
              test::read_whole_file(host_.root() + file["path"].get<std::string>()));
  }
  // A host by itself, and again somewhere else.
  const std::string elsewhere = dir_ / "mounted elsewhere";
  std::filesystem::rename(drive, elsewhere);
  EXPECT_THAT(other_.varve_ok({"vm", "import", elsewhere}), HasSubstr("is imported"));
  expect_whole(other_);
  const HostDirectory there(elsewhere);
  there.varve_ok({"snapshot", "create", kName, "on the drive"});
  there.varve_ok({"snapshot", "delete", kName, "on the drive"});
  expect_whole(there);
}

TEST_F(TransferCommandTest, ADryRunTellsAndChangesNothing) {
  const auto before = host_.contents();
  std::filesystem::create_directory(other_.root());
  EXPECT_THAT(host_.varve_ok({"--dry-run", "vm", "move", kName, "--to", "dir:" + other_.root()}),
              HasSubstr("read the copies back"));
  EXPECT_EQ(host_.contents(), before);
  EXPECT_THAT(other_.contents(), IsEmpty());
}

TEST_F(TransferCommandTest, AMoveLeavesNothingBehind) {
  EXPECT_THAT(host_.varve_ok({"vm", "move", kName, "--to", "dir:" + other_.root()}), HasSubstr("is on dir:"));
  for (const auto& [path, contents] : host_.contents()) EXPECT_THAT(path, Not(HasSubstr(kName)));
  EXPECT_FALSE(std::filesystem::exists(other_.root() + "/var/lib/varve/transfer/" + kName + ".json"));
  expect_whole(other_);
}

TEST_F(TransferCommandTest, ImagesMoveToAnotherDirectoryAndTheDocumentsFollow) {
  const std::string fast = host_.root() + "/srv/fast disks";
  std::filesystem::create_directories(fast);
  host_.varve_ok({"vm", "move", kName, "--to", fast});
  EXPECT_FALSE(std::filesystem::exists(host_.image(image())));
  EXPECT_THAT(test::read_whole_file(host_.definition(kName)), HasSubstr("file='/srv/fast disks/Büro PC.qcow2'"));
  for (const char* name : {"first", "zweiter Stand ä", "branch"}) {
    const std::string text = test::read_whole_file(host_.metadata(kName, name));
    EXPECT_THAT(text, HasSubstr("file='/srv/fast disks/Büro PC.qcow2'"));
    EXPECT_THAT(text, Not(HasSubstr("/var/lib/libvirt/images")));
  }
  expect_whole(host_, "/srv/fast disks");
  const ProcessResult again = host_.varve({"vm", "move", kName, "--to", fast});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("none of its files has to move"));
}

TEST_F(TransferCommandTest, ABackingChainComesAlongAndStandsOnItsOwnFiles) {
  const std::string base = host_.image(image());
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, host_.image("top.qcow2")});
  // As seen from the root, as documents and images of the host have it.
  test::run_ok({"qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "/var/lib/libvirt/images/" + image(),
                host_.image("top.qcow2")});
  host_.varve_ok({"vm", "create", "clone", "--disk", "/var/lib/libvirt/images/top.qcow2,format=qcow2"});
  const std::string drive = dir_ / "drive";
  const json result = host_.varve_json({"vm", "export", "clone", drive});
  EXPECT_EQ(result["files"].size(), 3u);
  const json info =
      json::parse(test::run_ok({"qemu-img", "info", "--output=json", drive + "/var/lib/libvirt/images/top.qcow2"}));
  EXPECT_EQ(info["backing-filename"], image());
  EXPECT_EQ(info["full-backing-filename"], drive + "/var/lib/libvirt/images/" + image());
  EXPECT_THAT(test::run_ok({"qemu-io", "-r", "-c", "read -P 4 0 8M", drive + "/var/lib/libvirt/images/top.qcow2"}),
              Not(HasSubstr("failed")));
  check_sums(drive, "clone");
  // The base is another machine's, too: it is copied, and stays.
  host_.varve_ok({"vm", "move", "clone", "--to", "dir:" + other_.root()});
  EXPECT_FALSE(std::filesystem::exists(host_.image("top.qcow2")));
  expect_whole(host_);
  EXPECT_TRUE(other_.is_filled(image(), 4));
}

TEST_F(TransferCommandTest, WhatAStayingImageStandsOnStays) {
  const std::string fast = host_.root() + "/srv/fast";
  std::filesystem::create_directories(fast);
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                "../../var/lib/libvirt/images/base.qcow2", "-u", fast + "/top.qcow2", "64M"});
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", host_.image("base.qcow2"), "64M"});
  host_.varve_ok({"vm", "create", "pile", "--disk", "/srv/fast/top.qcow2,format=qcow2", "--disk", "1M"});
  EXPECT_THAT(host_.varve({"vm", "move", "pile", "--to", fast}).err, HasSubstr("base.qcow2 stays: "));
  EXPECT_TRUE(std::filesystem::exists(fast + "/pile-2.qcow2"));
  EXPECT_EQ(host_.varve_json({"verify", "pile"})["status"], "ok");
}

// A copy of another kind has other checksums.
TEST_F(TransferCommandTest, WhatAnExportHasBegunIsNotTakenForAMove) {
  host_.fill("Büro PC-2.qcow2", 7, 0, 60);
  const std::string drive = dir_ / "drive";
  const std::string state = drive + "/var/lib/varve/transfer/" + kName + ".json";
  {
    test::BackgroundProcess command({VARVE_COMMAND, "-c", "dir:" + host_.root(), "vm", "export", kName, drive});
    while (!std::filesystem::exists(state) && !std::filesystem::exists(drive + "/" + kName + ".manifest.json")) {
      std::this_thread::yield();
    }
    command.kill();
  }
  const ProcessResult moved = host_.varve({"vm", "move", kName, "--to", "dir:" + drive});
  // Where the export was quicker than its end, the machine is there.
  EXPECT_TRUE(moved.exit_code == 0 || moved.err.find("there is a domain of that name") != std::string::npos)
      << moved.err;
  expect_whole(HostDirectory(drive));
}

// In a tree that is a machine, a stranger's definition does not say where files come into being.
TEST_F(TransferCommandTest, OnAWholeMachineFilesGoToItsImagesOnly) {
  std::filesystem::create_directories(other_.root() + "/usr/bin");
  std::filesystem::create_directories(host_.root() + "/etc/cron.d");
  std::filesystem::create_directories(host_.root() + "/data");
  host_.varve_ok({"vm", "create", "evil", "--disk", "1M,format=raw,path=/etc/cron.d/evil", "--disk",
                  "64M,path=/data/evil.qcow2", "--disk", "64M,path=/var/lib/libvirt/images/evil.qcow2"});
  test::run_ok({"qemu-io", "-c", "write -P 1 0 1M", host_.root() + "/data/evil.qcow2"});
  test::run_ok({"qemu-io", "-c", "write -P 2 0 1M", host_.image("evil.qcow2")});
  host_.varve_ok({"vm", "move", "evil", "--to", "dir:" + other_.root()});
  EXPECT_FALSE(std::filesystem::exists(other_.root() + "/etc/cron.d"));
  EXPECT_TRUE(std::filesystem::exists(other_.image("evil")));
  EXPECT_TRUE(other_.is_filled("evil.qcow2", 2, 0, 1));
  EXPECT_TRUE(other_.is_filled("evil-2.qcow2", 1, 0, 1));
  EXPECT_THAT(test::read_whole_file(other_.definition("evil")), HasSubstr("/var/lib/libvirt/images/evil-2.qcow2"));
}

TEST_F(TransferCommandTest, DocumentsThatContradictEachOtherAreRefused) {
  std::string xml = test::read_whole_file(host_.definition(kName));
  const std::string format = "type='qcow2'";
  ASSERT_NE(xml.find(format), std::string::npos);
  xml.replace(xml.find(format), format.size(), "type='raw'");
  test::run_ok({"cp", dir_.write("vm.xml", xml), host_.definition(kName)});
  const ProcessResult result = host_.varve({"vm", "move", kName, "--to", "dir:" + other_.root()});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("elsewhere in the machine's documents"));
}

// The name of a backing file is made of paths, and QEMU follows links.
TEST_F(TransferCommandTest, ABackingFileThatLinksHideIsNotLostFromSight) {
  std::filesystem::create_directories(host_.root() + "/srv");
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../var/lib/libvirt/images/" + image(),
                host_.root() + "/srv/top.qcow2"});
  host_.varve_ok({"vm", "create", "clone", "--disk", "/srv/top.qcow2,format=qcow2"});
  std::filesystem::create_directories(other_.root() + "/deep/er/still");
  std::filesystem::create_symlink("deep/er/still", other_.root() + "/srv");
  const ProcessResult result = host_.varve({"vm", "export", "clone", other_.root()});
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_THAT(result.err, HasSubstr("links lie on the way"));
  EXPECT_FALSE(std::filesystem::exists(other_.definition("clone")));
}

TEST_F(TransferCommandTest, WhatAnInterruptedTransferLeftMayBeAnotherMachinesByNow) {
  // As after a crash between the names and the record.
  const std::string state = "/var/lib/varve/transfer/" + std::string(kName) + ".json";
  host_.varve_ok({"vm", "export", kName, other_.root()});
  const std::string uuid = host_.varve_json({"vm", "show", kName})["uuid"];
  json files = json::array();
  for (const std::string& file : {image(), std::string(kName) + "-2.qcow2"}) {
    struct stat from{};
    struct stat to{};
    ASSERT_EQ(::stat(host_.image(file).c_str(), &from), 0);
    ASSERT_EQ(::stat(other_.image(file).c_str(), &to), 0);
    const auto stamp = [](const struct stat& s) {
      return json{{"inode", s.st_ino}, {"size", s.st_size}, {"mtime", s.st_mtim.tv_sec}, {"nsec", s.st_mtim.tv_nsec}};
    };
    files.push_back({{"path", "/var/lib/libvirt/images/" + file},
                     {"from", "/var/lib/libvirt/images/" + file},
                     {"source", stamp(from)},
                     {"whole", true},
                     {"checksum", std::string(64, '0')},
                     {"copied", stamp(to)},
                     {"settled", false}});
  }
  std::filesystem::remove(other_.definition(kName));
  std::filesystem::remove_all(other_.root() + "/var/lib/libvirt/qemu/snapshot/" + kName);
  test::run_ok(
      {"cp",
       dir_.write("state", json{{"purpose", "export"}, {"uuid", uuid}, {"documents", ""}, {"files", files}}.dump()),
       other_.root() + state});
  other_.varve_ok({"vm", "create", "heir", "--disk", "/var/lib/libvirt/images/" + image() + ",format=qcow2"});
  const auto before = other_.contents();
  const ProcessResult result = host_.varve({"vm", "export", kName, other_.root()});
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_THAT(result.err, HasSubstr("domain 'heir' needs"));
  EXPECT_EQ(other_.contents(), before);
}

TEST_F(TransferCommandTest, ADirectoryMayBeNamedAsAHost) {
  host_.varve_ok({"vm", "export", kName, "dir:" + (dir_ / "drive")});
  other_.varve_ok({"vm", "import", "dir:" + (dir_ / "drive")});
  expect_whole(other_);
  EXPECT_EQ(host_.varve({"vm", "export", kName, "qemu:///system"}).exit_code, 2);
}

TEST_F(TransferCommandTest, WhatIsThereIsNeverOverwritten) {
  other_.varve_ok({"vm", "create", "resident", "--disk", "1M,path=/var/lib/libvirt/images/" + image()});
  const auto before = other_.contents();
  const ProcessResult result = host_.varve({"vm", "move", kName, "--to", "dir:" + other_.root()});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("Büro PC.qcow2 is there already"));
  EXPECT_THAT(result.err, HasSubstr("--images"));
  EXPECT_EQ(other_.contents(), before);
  host_.varve_ok({"vm", "move", kName, "--to", "dir:" + other_.root(), "--images", "/srv/arrived"});
  expect_whole(other_, "/srv/arrived");
  EXPECT_EQ(other_.varve_json({"verify", "resident"})["status"], "ok");
}

TEST_F(TransferCommandTest, ANameOrAUuidThatIsTakenIsRefused) {
  other_.make_domain(kName);
  const ProcessResult name = host_.varve({"vm", "export", kName, other_.root()});
  EXPECT_EQ(name.exit_code, 3);
  EXPECT_THAT(name.err, HasSubstr("there is a domain of that name"));
  other_.varve_ok({"-y", "vm", "undefine", kName, "--storage"});

  std::string xml = host_.varve_ok({"vm", "show", kName, "--xml"});
  xml = std::regex_replace(xml, std::regex("<name>.*</name>"), "<name>twin</name>");
  xml = std::regex_replace(xml, std::regex("<disk [^]*</disk>"), "");
  other_.varve_ok({"vm", "define", dir_.write("twin.xml", xml)});
  const ProcessResult uuid = host_.varve({"vm", "export", kName, other_.root()});
  EXPECT_EQ(uuid.exit_code, 3);
  EXPECT_THAT(uuid.err, HasSubstr("domain 'twin' has the UUID"));
}

TEST_F(TransferCommandTest, AnImageInUseDoesNotMove) {
  test::BackgroundProcess user({"qemu-io", host_.image(image())});
  ASSERT_TRUE(user.wait_for("qemu-io>"));
  const auto before = host_.contents();
  const ProcessResult result = host_.varve({"vm", "move", kName, "--to", "dir:" + other_.root()});
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, HasSubstr("nothing was changed"));
  EXPECT_EQ(host_.contents(), before);
}

// However far it came.
TEST_F(TransferCommandTest, AnInterruptedCopyIsGoneOnWith) {
  host_.fill("Büro PC-2.qcow2", 7, 0, 60);
  const std::string drive = dir_ / "drive";
  const std::string part = drive + "/var/lib/libvirt/images/Büro PC.qcow2.varve-part";
  {
    test::BackgroundProcess command({VARVE_COMMAND, "-c", "dir:" + host_.root(), "vm", "export", kName, drive});
    while (!std::filesystem::exists(part) && !std::filesystem::exists(drive + "/" + kName + ".manifest.json")) {
      std::this_thread::yield();
    }
    command.kill();
  }
  host_.varve_ok({"vm", "export", kName, drive});
  EXPECT_FALSE(std::filesystem::exists(part));
  check_sums(drive);
  expect_whole(HostDirectory(drive));
}

TEST_F(TransferCommandTest, AChangedExportIsNotImported) {
  const std::string drive = dir_ / "drive";
  host_.varve_ok({"vm", "export", kName, drive});
  const std::string manifest = drive + "/" + kName + ".manifest.json";
  const std::string good = test::read_whole_file(manifest);
  const std::string images = drive + "/var/lib/libvirt/images/";
  const auto refused = [&](const std::string& reason) {
    const ProcessResult result = other_.varve({"vm", "import", drive});
    EXPECT_NE(result.exit_code, 0) << reason;
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_FALSE(std::filesystem::exists(other_.definition(kName)));
  };
  const auto lie = [&](const std::string& from, const std::string& to, const std::string& reason) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    dir_.write("drive/" + std::string(kName) + ".manifest.json", text);
    refused(reason);
  };
  lie("\"path\": \"var", "\"path\": \"../var", "is no path below its directory");
  lie("\"path\": \"var", "\"path\": \"/var", "is no path below its directory");
  lie("\"path\": \"var/lib/libvirt/images/Büro PC.qcow2\"", "\"path\": \"var/lib/libvirt/images/Büro PC-2.qcow2\"",
      "twice");
  lie("images/Büro PC-2", "images/Büro PC-3", "does not list /var/lib/libvirt/images/Büro PC-2.qcow2");
  lie("\"version\": 1", "\"version\": 3", "has version 3");
  lie("\"version\": 1", "\"version\": 2", "does not say what it stands on");
  lie("varve-export", "varve-import", "is of another format");
  lie("\"domain\": \"Büro PC\"", "\"domain\": \"other\"", "is the manifest of another machine");
  dir_.write("drive/" + std::string(kName) + ".manifest.json", good.substr(0, good.size() / 2));
  refused("is no manifest of an export");
  dir_.write("drive/" + std::string(kName) + ".manifest.json", good);

  // One byte of a guest's, where no check of the format would see it.
  test::run_ok({"cp", images + image(), dir_ / "kept"});
  const off_t size = static_cast<off_t>(std::filesystem::file_size(images + image()));
  {
    std::FILE* file = std::fopen((images + image()).c_str(), "r+b");
    ASSERT_NE(file, nullptr);
    std::fseek(file, size - 1, SEEK_SET);
    std::fputc(0x5a, file);
    std::fclose(file);
  }
  refused("Büro PC.qcow2 is not what the manifest says");
  ASSERT_EQ(::truncate((images + image()).c_str(), size - 65536), 0);
  refused("the export was cut short, or changed afterwards");
  std::filesystem::remove(images + image());
  std::filesystem::create_symlink(dir_ / "kept", images + image());
  refused("Büro PC.qcow2");
  std::filesystem::remove(images + image());
  test::run_ok({"cp", dir_ / "kept", images + image()});
  const std::string snapshot = drive + "/var/lib/libvirt/qemu/snapshot/" + kName + "/first.xml";
  const std::string xml = test::read_whole_file(snapshot);
  dir_.write("drive/var/lib/libvirt/qemu/snapshot/" + std::string(kName) + "/first.xml", xml + "\n");
  refused("first.xml is not what the manifest says");
  std::filesystem::remove(snapshot);
  refused("first.xml is missing, which the manifest lists");
  dir_.write("drive/var/lib/libvirt/qemu/snapshot/" + std::string(kName) + "/first.xml", xml);

  // What was copied of the bad one is no part of the good one.
  other_.varve_ok({"vm", "import", drive});
  expect_whole(other_);
}

TEST_F(TransferCommandTest, OneFileGoesThereAndBack) {
  const std::string archive = dir_ / "Büro PC.varve";
  const json result = host_.varve_json({"vm", "export", kName, archive});
  EXPECT_EQ(result["files"].size(), 6u);
  // Without Varve.
  std::filesystem::create_directory(dir_ / "unpacked");
  test::run_ok({"tar", "xf", archive, "-C", dir_ / "unpacked"});
  check_sums(dir_ / "unpacked");
  HostDirectory third;
  third.varve_ok({"vm", "import", dir_ / "unpacked"});
  expect_whole(third);

  // What an import left that was killed goes with the next.
  std::filesystem::create_directories(other_.root() + "/var/lib/libvirt/images/.varve-unpack-abcdef/d");
  EXPECT_THAT(other_.varve_ok({"vm", "import", archive}), HasSubstr("is imported"));
  expect_whole(other_);
  for (const auto& [path, contents] : other_.contents()) EXPECT_THAT(path, Not(HasSubstr("varve-unpack")));
  const ProcessResult again = host_.varve({"vm", "export", kName, archive});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("is there already"));
}

TEST_F(TransferCommandTest, AnArchiveKeepsHolesAndChains) {
  std::filesystem::create_directories(host_.root() + "/srv");
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", host_.image(image()),
                host_.root() + "/srv/top.qcow2"});
  test::run_ok({"qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "/var/lib/libvirt/images/" + image(),
                host_.root() + "/srv/top.qcow2"});
  host_.varve_ok({"vm", "create", "clone", "--disk", "/srv/top.qcow2,format=qcow2", "--disk", "1G,format=raw"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 9 512M 1M", host_.image("clone-2.img")});
  const std::string archive = dir_ / "clone.tar";
  host_.varve_ok({"vm", "export", "clone", archive});
  EXPECT_LE(std::filesystem::file_size(archive), uint64_t{64} << 20);
  std::filesystem::create_directory(dir_ / "unpacked");
  test::run_ok({"tar", "xf", archive, "-C", dir_ / "unpacked"});
  check_sums(dir_ / "unpacked", "clone");
  EXPECT_THAT(test::run_ok({"qemu-io", "-r", "-c", "read -P 4 0 8M", dir_ / "unpacked/srv/top.qcow2"}),
              Not(HasSubstr("failed")));
  other_.varve_ok({"vm", "import", archive, "--images", "/disks"});
  EXPECT_EQ(other_.varve_json({"verify", "clone"})["status"], "ok");
  EXPECT_THAT(test::run_ok({"qemu-io", "-r", "-c", "read -P 4 0 8M", other_.root() + "/disks/top.qcow2"}),
              Not(HasSubstr("failed")));
  const std::string raw = other_.root() + "/disks/clone-2.img";
  EXPECT_THAT(test::run_ok({"qemu-io", "-f", "raw", "-r", "-c", "read -P 9 512M 1M", "-c", "read -P 0 0 512M", raw}),
              Not(HasSubstr("failed")));
  struct stat status{};
  ASSERT_EQ(::stat(raw.c_str(), &status), 0);
  EXPECT_LE(status.st_blocks * 512, 2 << 20);
}

TEST_F(TransferCommandTest, AHostileArchiveIsRefused) {
  const std::string archive = dir_ / "good.tar";
  host_.varve_ok({"vm", "export", kName, archive});
  const std::string bytes = test::read_whole_file(archive);
  const auto refused = [&](const std::string& path, const std::string& reason) {
    const ProcessResult result = other_.varve({"vm", "import", path});
    EXPECT_EQ(result.exit_code, 1) << path << result.out;
    EXPECT_THAT(result.err, HasSubstr(reason)) << path;
    EXPECT_FALSE(std::filesystem::exists(other_.definition(kName)));
    EXPECT_TRUE(std::filesystem::is_empty(other_.root() + "/var/lib/libvirt/images"));
  };
  for (const size_t length : {size_t{700}, bytes.size() / 2, bytes.size() - 4000}) {
    refused(dir_.write("cut.tar", bytes.substr(0, length)), "can't be read");
  }
  dir_.write("empty.tar", "");
  refused(dir_ / "empty.tar", "can't be read");
  refused(dir_.write("text.tar", std::string(100'000, 'x')), "can't be read");
  const std::string folder = dir_ / "folder";
  std::filesystem::create_directories(folder + "/sub");
  std::filesystem::create_symlink("/etc/passwd", folder + "/link");
  dir_.write("folder/file", "x");
  dir_.write("outside", "x");
  test::run_ok({"tar", "cf", dir_ / "link.tar", "-C", folder, "link"});
  refused(dir_ / "link.tar", "'link' is no file");
  test::run_ok({"tar", "cPf", dir_ / "up.tar", "-C", folder, "../outside"});
  refused(dir_ / "up.tar", "'../outside' is no path below a directory");
  test::run_ok({"tar", "cPf", dir_ / "absolute.tar", dir_ / "outside"});
  refused(dir_ / "absolute.tar", "is no path below a directory");
  test::run_ok({"tar", "cf", dir_ / "twice.tar", "-C", folder, "file", "file"});
  refused(dir_ / "twice.tar", "");
  EXPECT_FALSE(std::filesystem::exists(other_.root() + "/outside"));
  other_.varve_ok({"vm", "import", archive});
  expect_whole(other_);
}

TEST_F(TransferCommandTest, ATargetThatIsTooSmallIsKnownBeforehand) {
  LoopFileSystem drive("mkfs.ext4 -q -m 0", 16 << 20);
  REQUIRES_MOUNTED(drive);
  const ProcessResult result = host_.varve({"vm", "export", kName, drive.path()});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("nothing was changed"));
  EXPECT_FALSE(std::filesystem::exists(drive / "var/lib/libvirt/images/Büro PC.qcow2.varve-part"));
}

TEST_F(TransferCommandTest, EveryFileSystemTakesAMachine) {
  for (const char* mkfs : {"mkfs.ext4 -q", "mkfs.xfs -q", "mkfs.btrfs -q"}) {
    SCOPED_TRACE(mkfs);
    LoopFileSystem drive(mkfs, 512 << 20);
    REQUIRES_MOUNTED(drive);
    host_.varve_ok({"vm", "export", kName, drive.path(), "--verify"});
    drive.unmount();
    drive.mount();
    check_sums(drive.path());
    HostDirectory back;
    back.varve_ok({"vm", "import", drive.path()});
    expect_whole(back);
    expect_whole(HostDirectory(drive.path()));
  }
}

// A drive as people have them in their pockets, through FUSE: not every kernel knows FAT.
class FatDrive {
 public:
  FatDrive() {
    const std::string image = directory_ / "drive.fat";
    test::run_ok({"mkfs.vfat", "-F", "32", "-C", image, "524288"});
    std::filesystem::create_directory(path());
    mounted_ = test::run({"fusefat", "-o", "rw+", image, path()}).exit_code == 0;
  }
  FatDrive(const FatDrive&) = delete;
  FatDrive& operator=(const FatDrive&) = delete;
  ~FatDrive() {
    if (mounted_) test::run({"fusermount", "-u", path()});
  }
  bool mounted() const { return mounted_; }
  std::string path() const { return directory_ / "mnt"; }

 private:
  test::TempDir directory_;
  bool mounted_ = false;
};

TEST_F(TransferCommandTest, FatTakesWhatItCanHoldAndIsToldTheRest) {
  REQUIRES_PROGRAM("fusefat");
  REQUIRES_PROGRAM("mkfs.vfat");
  const FatDrive drive;
  if (!drive.mounted()) GTEST_SKIP() << "needs FUSE";
  host_.make_domain("pc");
  host_.fill("pc-2.qcow2", 5);
  host_.varve_ok({"snapshot", "create", "pc", "one"});
  host_.varve_ok({"vm", "create", "sparse", "--disk", "32M,format=raw"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 9 16M 64k", host_.image("sparse.img")});
  host_.varve_ok({"vm", "export", "pc", drive.path(), "--verify"});
  host_.varve_ok({"vm", "export", "sparse", drive.path(), "--verify"});
  check_sums(drive.path(), "pc");
  check_sums(drive.path(), "sparse");
  other_.varve_ok({"vm", "import", drive.path(), "pc"});
  EXPECT_EQ(other_.varve_json({"verify", "pc"})["status"], "ok");
  EXPECT_TRUE(other_.is_filled("pc-2.qcow2", 5));

  host_.varve_ok({"vm", "create", "big", "--disk", "5G,format=raw"});
  const ProcessResult big = host_.varve({"vm", "export", "big", drive.path()});
  EXPECT_EQ(big.exit_code, 3);
  EXPECT_THAT(big.err, HasSubstr("the file system FAT"));
  EXPECT_THAT(big.err, HasSubstr("holds files of less than 4 GiB only"));

  host_.make_domain("names", 1);
  for (const char* name : {"12:30", "Stand", "stand"}) host_.varve_ok({"snapshot", "create", "names", name});
  const ProcessResult names = host_.varve({"vm", "export", "names", drive.path()});
  EXPECT_EQ(names.exit_code, 3);
  EXPECT_THAT(names.err, HasSubstr("can't be called '12:30.xml'"));
  EXPECT_THAT(names.err, HasSubstr("knows no difference between small and capital letters"));

  host_.varve_ok({"vm", "export", "pc", drive.path() + "/full"});
  host_.varve_ok({"snapshot", "create", "pc", "One"});
  const std::vector<std::string> since = {"vm", "export", "pc", drive.path() + "/1", "--since", "one"};
  EXPECT_THAT(host_.varve(since).err, HasSubstr("knows no difference between small and capital letters"));
  EXPECT_FALSE(std::filesystem::exists(drive.path() + "/1"));
}

TEST_F(TransferCommandTest, HolesStayHoles) {
  host_.varve_ok({"vm", "create", "sparse", "--disk", "1G,format=raw"});
  test::run_ok({"qemu-io", "-f", "raw", "-c", "write -P 9 512M 1M", host_.image("sparse.img")});
  host_.varve_ok({"vm", "move", "sparse", "--to", "dir:" + other_.root()});
  EXPECT_LE(other_.occupied("sparse.img"), uint64_t{2} << 20);
  EXPECT_THAT(test::run_ok({"qemu-io", "-f", "raw", "-r", "-c", "read -P 9 512M 1M", "-c", "read -P 0 900M 1M",
                            other_.image("sparse.img")}),
              Not(HasSubstr("failed")));
}

TEST_F(TransferCommandTest, ReflinksAreUsedWhereTheFileSystemKnowsThem) {
  LoopFileSystem disk("mkfs.xfs -q", 512 << 20);
  REQUIRES_MOUNTED(disk);
  const HostDirectory host(disk / "host");
  std::filesystem::create_directories(host.root());
  host.make_domain("vm", 1);
  host.fill("vm.qcow2", 1, 0, 32);
  host.varve_ok({"vm", "export", "vm", disk / "export"});
  const std::string exported = disk / "export/var/lib/libvirt/images/vm.qcow2";
  EXPECT_THAT(test::run_ok({"filefrag", "-v", exported}), HasSubstr("shared"));
  check_sums(disk / "export", "vm");
  host.varve_ok({"vm", "move", "vm", "--to", "dir:" + (disk / "other")});
  EXPECT_TRUE(HostDirectory(disk / "other").is_filled("vm.qcow2", 1, 0, 32));
  EXPECT_THAT(test::run_ok({"filefrag", "-v", disk / "other/var/lib/libvirt/images/vm.qcow2"}), HasSubstr("shared"));
}

}  // namespace
}  // namespace varve
