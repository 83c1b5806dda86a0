// Looking inside of a snapshot's disks: `snapshot ls`, `cat`, `cp`, `mount`, `diff --files`, with the real libguestfs.
// Its appliance runs under TCG here: a start takes half a minute, so each test asks for much.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "interop/host_directory.h"

namespace varve {
namespace {

using nlohmann::json;
using test::BackgroundProcess;
using test::ProcessResult;
using test::run;
using test::run_ok;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::UnorderedElementsAre;

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

class NbdkitFilesCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"nbdkit", "guestfish", "qemu-img", "mkfs.ext4", "nbdfuse"}) REQUIRES_PROGRAM(program);
    const std::string guest = VARVE_TEST_GUEST;
    std::error_code error;
    const std::filesystem::directory_iterator modules(guest + "/modules", error);
    if (error) GTEST_SKIP() << "needs a guest's kernel and its modules: scripts/setup --tests";
    ::setenv("SUPERMIN_KERNEL", (guest + "/vmlinuz").c_str(), 1);
    ::setenv("SUPERMIN_MODULES", modules->path().c_str(), 1);
    ::setenv("LIBGUESTFS_CACHEDIR", (guest + "/appliance").c_str(), 1);
    ::setenv("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg", 1);  // KVM may be there and yet not boot a kernel
    ::setenv("TMPDIR", temp_.path().c_str(), 1);              // sockets are private, and gone at the end
  }

  void TearDown() override {
    if (IsSkipped()) return;
    for (const auto& left : std::filesystem::directory_iterator(temp_.path())) {
      const std::string name = left.path().filename();
      EXPECT_FALSE(name.starts_with("varve-") || name.starts_with("libguestfs")) << left.path();
    }
  }

  // A machine whose disks are these file systems, each the whole of one.
  void make_machine(const std::vector<std::string>& raw_images) const {
    std::vector<std::string> arguments = {"vm", "create", kDomain};
    for (size_t i = 0; i < raw_images.size(); ++i) arguments.insert(arguments.end(), {"--disk", "64M"});
    host_.varve_ok(arguments);
    for (size_t i = 0; i < raw_images.size(); ++i) {
      run_ok({"qemu-img", "convert", "-n", "-O", "qcow2", raw_images[i], disk(i)});
    }
  }
  std::string disk(size_t index) const {
    return host_.image(std::string(kDomain) + (index == 0 ? "" : "-" + std::to_string(index + 1)) + ".qcow2");
  }
  // A raw image with an ext4 that holds what is in the directory.
  std::string make_ext4(const std::string& name, const std::string& directory,
                        const std::vector<std::string>& options = {}) const {
    std::string image = temp_.path() + "/" + name;
    std::vector<std::string> words = {"mkfs.ext4", "-q", "-F", "-d", directory};
    words.insert(words.end(), options.begin(), options.end());
    words.insert(words.end(), {image, "64M"});
    run_ok(words);
    return image;
  }
  void guestfish(const std::string& script) const {
    std::vector<std::string> words = {"guestfish"};
    for (size_t i = 0; std::filesystem::exists(disk(i)); ++i)
      words.insert(words.end(), {"--format=qcow2", "-a", disk(i)});
    run_ok(words, {.stdin_text = script, .working_directory = {}, .environment = {}});
  }

  static constexpr const char* kDomain = "büro pc";
  static constexpr const char* kSnapshot = "vor dem Umzug: a=b";
  std::string inside(const std::string& path) const { return std::string(kSnapshot) + ":" + path; }
  test::HostDirectory host_;
  test::TempDir temp_;
};

TEST_F(NbdkitFilesCommandTest, TheFilesThatDifferAreToldForEveryKindOfFileSystem) {
  host_.varve_ok({"vm", "create", kDomain, "--disk", "320M", "--disk", "480M"});
  guestfish(R"(run
part-init /dev/sda gpt
part-add /dev/sda p 2048 100000
part-add /dev/sda p 100352 200000
part-add /dev/sda p 200704 620000
mkfs ext4 /dev/sda1
mkfs vfat /dev/sda2
pvcreate /dev/sda3
vgcreate vg /dev/sda3
lvcreate root vg 50
lvcreate data vg 120
mkfs ext2 /dev/vg/root label:wurzel
mkfs btrfs /dev/vg/data
part-init /dev/sdb mbr
part-add /dev/sdb p 2048 655360
part-add /dev/sdb p 655488 900000
mkfs xfs /dev/sdb1
mkfs ntfs /dev/sdb2
mount /dev/sda1 /
mkdir /etc
write /etc/passwd "root:x:0:0\n"
write /etc/gone "bye"
write /etc/same "same"
umount /
mount /dev/sda2 /
write /old.txt "old"
)");
  host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});
  guestfish(R"(run
mount /dev/sda1 /
write-append /etc/passwd "eve:x:0:0\n"
rm /etc/gone
mkdir /new
write "/new/ä ö" "12345"
umount /
mount /dev/sda2 /
rm /old.txt
umount /
mount /dev/vg/root /
write /lv.txt "x"
umount /
mount /dev/vg/data /
write /b.txt "x"
umount /
mount /dev/sdb1 /
write /x.txt "xfs"
umount /
mount /dev/sdb2 /
write /n.txt "ntfs"
)");
  const json said = host_.varve_json({"snapshot", "diff", kDomain, kSnapshot, "--files"});
  std::map<std::string, std::pair<std::string, std::vector<std::string>>> found;
  for (const json& one : said["files"]) {
    auto& [type, changes] = found[one["device"]];
    type = one["type"];
    EXPECT_TRUE(one["problem"].is_null()) << one.dump();
    for (const json& change : one["changes"]) {
      const std::string path = change["path"];
      // NTFS and XFS have files of their own that a mount touches.
      changes.push_back(change["change"].get<std::string>() + " " + path);
    }
  }
  ASSERT_EQ(found.size(), 6u) << said["files"].dump(2);
  EXPECT_EQ(found["vda1"].first, "ext4");
  EXPECT_THAT(found["vda1"].second,
              ElementsAre("added /new", "removed /etc/gone", "changed /etc/passwd", "added /new/ä ö"));
  EXPECT_THAT(found["vda2"].second, ElementsAre("removed /old.txt"));
  EXPECT_EQ(found["vg/root"].first, "ext2");
  EXPECT_THAT(found["vg/root"].second, ElementsAre("added /lv.txt"));
  EXPECT_EQ(found["vg/data"].first, "btrfs");
  EXPECT_THAT(found["vg/data"].second, ElementsAre("added /b.txt"));
  EXPECT_EQ(found["vdb1"].first, "xfs");
  EXPECT_THAT(found["vdb1"].second, ElementsAre("added /x.txt"));
  EXPECT_EQ(found["vdb2"].first, "ntfs");
  EXPECT_THAT(found["vdb2"].second, ElementsAre("added /n.txt"));
  for (const json& one : said["files"]) {
    for (const json& change : one["changes"]) {
      if (change["path"] != "/etc/passwd") continue;
      EXPECT_EQ(change["before"]["size_bytes"], 11);
      EXPECT_EQ(change["after"]["size_bytes"], 21);
      EXPECT_THAT(change["what"].get<std::vector<std::string>>(), ElementsAre("size", "time"));
    }
  }

  const json partitions = host_.varve_json({"snapshot", "ls", kDomain, kSnapshot, "--partitions"});
  ASSERT_EQ(partitions.size(), 6u) << partitions.dump(2);
  for (const json& one : partitions) {
    EXPECT_EQ(one["label"], one["device"] == "vg/root" ? "wurzel" : "") << one.dump();
  }
  for (size_t i : {0U, 1U}) run_ok({"qemu-img", "check", disk(i)});
}

TEST_F(NbdkitFilesCommandTest, FilesAreListedPrintedAndCopiedAsTheyWere) {
  const std::string files = temp_.path() + "/files";
  std::string binary;
  for (int i = 0; i < 3'000'000; ++i) binary += static_cast<char>((i * 2654435761U) >> 24U);
  write(files + "/home/Über uns/a b.bin", binary);
  write(files + "/home/program", "#!/bin/sh\n");
  write(files + "/home/again", "twice");
  std::filesystem::create_hard_link(files + "/home/again", files + "/home/twice");
  std::filesystem::create_symlink("/etc/passwd", files + "/home/link");
  ASSERT_EQ(::chmod((files + "/home/program").c_str(), 04755), 0);
  std::filesystem::create_symlink("/home", files + "/way");  // absolute: in the guest, and nowhere else
  ASSERT_EQ(::chmod((files + "/home").c_str(), 0700), 0);
  ASSERT_EQ(::chmod((files + "/home/again").c_str(), 0400), 0);
  ASSERT_EQ(::mkfifo((files + "/home/fifo").c_str(), 0666), 0);
  make_machine({make_ext4("a.raw", files)});
  host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -z 0 64M", disk(0)});  // the present state has nothing

  const json list = host_.varve_json({"snapshot", "ls", kDomain, inside("/home")});
  std::map<std::string, json> listed;
  for (const json& one : list) listed[one["name"]] = one;
  ASSERT_EQ(listed.count("program"), 1u) << list.dump(2);
  EXPECT_EQ(listed["program"]["mode"], "4755");
  EXPECT_EQ(listed["program"]["size_bytes"], 10);
  EXPECT_EQ(listed["link"]["target"], "/etc/passwd");
  EXPECT_EQ(listed["Über uns"]["kind"], "directory");

  const ProcessResult printed = host_.varve({"snapshot", "cat", kDomain, inside("/home/Über uns/a b.bin")});
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  EXPECT_TRUE(printed.out == binary) << printed.out.size();

  const std::string target = temp_.path() + "/out";
  const ProcessResult copied = host_.varve({"snapshot", "cp", kDomain, inside("/way/"), target});
  ASSERT_EQ(copied.exit_code, 0) << copied.err;
  EXPECT_TRUE(text_of(target + "/Über uns/a b.bin") == binary);
  struct stat status = {};
  ASSERT_EQ(::stat((target + "/program").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0755U) << "a guest's setuid program";
  ASSERT_EQ(::stat((target + "/again").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0400U);
  ASSERT_EQ(::stat(target.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0700U);
  EXPECT_EQ(std::filesystem::read_symlink(target + "/link"), "/etc/passwd");
  EXPECT_EQ(text_of(target + "/twice"), "twice");
  EXPECT_FALSE(std::filesystem::exists(target + "/fifo"));
  EXPECT_THAT(copied.err, HasSubstr("/way/fifo is left out"));

  // Refused before an appliance is started.
  const ProcessResult again = host_.varve({"snapshot", "cp", kDomain, inside("/home/again"), target});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("is there already"));
  EXPECT_EQ(host_.varve({"snapshot", "ls", kDomain, "nothing:/"}).exit_code, 4);
  host_.varve_ok({"--dry-run", "snapshot", "cp", kDomain, inside("/home"), target + "2"});
  EXPECT_FALSE(std::filesystem::exists(target + "2"));
}

TEST_F(NbdkitFilesCommandTest, ASystemIsReadAsItMountsItself) {
  const std::string root = temp_.path() + "/root";
  constexpr const char* kUuid = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
  write(root + "/etc/os-release", "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
  write(root + "/etc/debian_version", "12.1\n");
  write(root + "/etc/fstab", "/dev/vda / ext4 defaults 0 1\nUUID=" + std::string(kUuid) + " /home ext4 defaults 0 2\n");
  for (const char* directory : {"bin", "home", "root"}) std::filesystem::create_directories(root + "/" + directory);
  const std::string home = temp_.path() + "/home";
  write(home + "/anna/letter", "Liebe Anna\n");
  make_machine({make_ext4("root.raw", root), make_ext4("home.raw", home, {"-U", kUuid})});
  host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});

  const ProcessResult letter = host_.varve({"snapshot", "cat", kDomain, inside("/home/anna/letter")});
  EXPECT_EQ(letter.exit_code, 0) << letter.err;
  EXPECT_EQ(letter.out, "Liebe Anna\n");
}

TEST_F(NbdkitFilesCommandTest, ASnapshotIsMountedUntilItIsUnmounted) {
  const std::string files = temp_.path() + "/files";
  write(files + "/etc/passwd", "root:x:0:0\n");
  const std::string raw = make_ext4("a.raw", files);
  make_machine({raw});
  host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -z 0 64M", disk(0)});
  const std::string directory = temp_.path() + "/an ihm";

  const std::vector<std::string> mount = {VARVE_COMMAND, "-c",     "dir:" + host_.root(), "snapshot", "mount", kDomain,
                                          kSnapshot,     directory};
  EXPECT_EQ(run(mount).exit_code, 4);  // no such directory
  write(directory + "/file", "");
  EXPECT_EQ(run(mount).exit_code, 3);  // not empty
  std::filesystem::remove(directory + "/file");

  const auto with = [&](const char* option) {
    std::vector<std::string> words = mount;
    words.emplace_back(option);
    return words;
  };
  {
    BackgroundProcess disk(with("--disk=vda"));
    const bool there = disk.wait_for("ends it.");
    if (!there && disk.output().find("FUSE is needed") != std::string::npos) GTEST_SKIP() << "needs FUSE";
    ASSERT_TRUE(there) << disk.output();
    EXPECT_EQ(std::filesystem::file_size(directory + "/vda"), std::filesystem::file_size(raw));
    EXPECT_TRUE(text_of(directory + "/vda") == text_of(raw));
    run_ok({"umount", directory});
    EXPECT_EQ(disk.close_and_wait(), 0) << disk.output();
    EXPECT_TRUE(std::filesystem::is_empty(directory));
  }
  BackgroundProcess mounted(with("--partition=vda"));
  ASSERT_TRUE(mounted.wait_for("ends it.", std::chrono::minutes(5))) << mounted.output();
  EXPECT_EQ(text_of(directory + "/etc/passwd"), "root:x:0:0\n");
  EXPECT_FALSE(std::ofstream(directory + "/new").is_open());
  ::kill(mounted.pid(), SIGTERM);
  EXPECT_EQ(mounted.close_and_wait(), 0) << mounted.output();
  EXPECT_TRUE(std::filesystem::is_empty(directory));
}

TEST_F(NbdkitFilesCommandTest, AFileSystemThatCannotBeReadIsSaid) {
  const std::string files = temp_.path() + "/files";
  write(files + "/etc/passwd", "root:x:0:0\n");
  make_machine({make_ext4("a.raw", files)});
  // The superblock stays, what it leads to goes.
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 0xff 4k 8M", disk(0)});
  host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});
  const ProcessResult result = host_.varve({"snapshot", "ls", kDomain, kSnapshot, "--partition", "vda"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("vda (ext4) can't be read"));

  ::setenv("PATH", "/nowhere", 1);
  const ProcessResult bare = run({VARVE_COMMAND, "-c", "dir:" + host_.root(), "snapshot", "ls", kDomain, kSnapshot});
  EXPECT_EQ(bare.exit_code, 1);
  EXPECT_THAT(bare.err, AllOf(HasSubstr("nbdkit"), HasSubstr("apt-get install")));
}

}  // namespace
}  // namespace varve
