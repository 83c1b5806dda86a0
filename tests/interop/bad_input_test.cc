// Everything that a command refuses: the exit code, the message, and that nothing was changed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/endian.h"
#include "interop/host_directory.h"

namespace varve {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

class BadInputTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    host_.fill("vm.qcow2", 1);
    host_.varve_ok({"snapshot", "create", "vm", "base"});
  }

  // The command ends with this code, says this, and changes nothing.
  void expect_refused(const std::vector<std::string>& command, int exit_code,
                      const testing::Matcher<std::string>& message) {
    const auto before = host_.contents();
    const test::ProcessResult result = host_.varve(command);
    EXPECT_EQ(result.exit_code, exit_code) << result.out << result.err;
    EXPECT_THAT(result.err, StartsWith("varve: "));
    EXPECT_THAT(result.err, message);
    EXPECT_TRUE(host_.contents() == before) << "something was changed";
  }
  void patch(const std::string& file, std::streamoff offset, const std::string& bytes) {
    std::fstream image(host_.image(file), std::ios::binary | std::ios::in | std::ios::out);
    image.seekp(offset).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  void replace_in_definition(const std::string& from, const std::string& to) {
    std::string text = test::read_whole_file(host_.definition("vm"));
    ASSERT_NE(text.find(from), std::string::npos);
    text.replace(text.find(from), from.size(), to);
    std::ofstream(host_.definition("vm"), std::ios::trunc) << text;
  }

  test::HostDirectory host_;
  test::TempDir scratch_;
};

TEST_F(BadInputTest, UnknownDomainsAndSnapshotsAreNotFoundAndTheOthersAreNamed) {
  expect_refused({"snapshot", "create", "wm", "s"}, 4, AllOf(HasSubstr("'wm'"), HasSubstr("vm")));
  expect_refused({"vm", "show", "wm"}, 4, HasSubstr("vm"));
  expect_refused({"snapshot", "revert", "vm", "bass"}, 4, AllOf(HasSubstr("'bass'"), HasSubstr("base")));
  expect_refused({"snapshot", "delete", "vm", "bass"}, 4, HasSubstr("base"));
  expect_refused({"snapshot", "edit", "vm", "bass", "--name", "x"}, 4, HasSubstr("base"));
  expect_refused({"where", "vm", "bass"}, 4, HasSubstr("base"));
  EXPECT_FALSE(std::filesystem::exists(host_.root() + "/var/lib/varve/lock/wm"));
}

TEST_F(BadInputTest, ANameThatIsTakenIsRefused) {
  expect_refused({"snapshot", "create", "vm", "base"}, 3,
                 AllOf(HasSubstr("snapshot 'base' of 'vm' is not created: there is a snapshot of that name"),
                       HasSubstr("nothing was changed")));
  host_.varve_ok({"snapshot", "create", "vm", "other"});
  expect_refused({"snapshot", "edit", "vm", "other", "--name", "base"}, 3, HasSubstr("'base'"));
}

TEST_F(BadInputTest, ANameThatOnlyAnImageKnowsIsTakenToo) {
  test::run_ok({"qemu-img", "snapshot", "-c", "stray", host_.image("vm-2.qcow2")});
  expect_refused({"snapshot", "create", "vm", "stray"}, 3,
                 AllOf(HasSubstr("the image of disk vdb"), HasSubstr("already holds a snapshot of that name (id 2)"),
                       HasSubstr("varve image snapshot -d 'stray'")));
  expect_refused({"snapshot", "edit", "vm", "base", "--name", "stray"}, 3, HasSubstr("disk vdb"));
}

TEST_F(BadInputTest, NamesThatAreNoFileNamesAreRefused) {
  for (const std::string name : {"a/b", "..", ".hidden", "a\nb", "\x7f", "/etc/passwd"}) {
    SCOPED_TRACE(name);
    expect_refused({"snapshot", "create", "vm", name}, 2, Not(IsEmpty()));
    expect_refused({"snapshot", "edit", "vm", "base", "--name", name}, 2, Not(IsEmpty()));
    expect_refused({"vm", "create", name, "--disk", "1M"}, 2, Not(IsEmpty()));
  }
  expect_refused({"snapshot", "create", "vm", std::string(300, 'n')}, 2, Not(IsEmpty()));
  expect_refused({"snapshot", "list", "../vm"}, 2, Not(IsEmpty()));
  expect_refused({"snapshot", "show", "vm", "../../vm"}, 2, Not(IsEmpty()));
}

TEST_F(BadInputTest, ARawDiskHoldsNoInternalSnapshotAndTheWayOutIsNamed) {
  host_.varve_ok({"vm", "create", "raw", "--disk", "1M", "--disk", "1M,format=raw"});
  expect_refused({"snapshot", "create", "raw", "s"}, 3,
                 AllOf(HasSubstr("disk vdb (/var/lib/libvirt/images/raw-2.img) is a raw image"),
                       HasSubstr("`--disk vdb=no` leaves it out"), HasSubstr("nothing was changed")));
  host_.varve_ok({"snapshot", "create", "raw", "s", "--disk", "vdb=no"});
}

TEST_F(BadInputTest, AFormatThatIsNotRecordedIsNotGuessed) {
  replace_in_definition("<driver name='qemu' type='qcow2'/>", "<driver name='qemu'/>");
  expect_refused({"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("does not say which format disk vda"), HasSubstr("varve vm define")));
}

TEST_F(BadInputTest, AnImageOfAnotherFormatThanTheDefinitionSaysIsRefused) {
  std::filesystem::remove(host_.image("vm-2.qcow2"));
  test::run_ok({"qemu-img", "create", "-q", "-f", "raw", host_.image("vm-2.qcow2"), "1M"});
  expect_refused({"snapshot", "create", "vm", "s"}, 3, HasSubstr("disk vdb"));
}

TEST_F(BadInputTest, AnExternalDataFileIsNotOpenedForSnapshots) {
  const std::string data = scratch_ / "data";
  std::filesystem::remove(host_.image("vm-2.qcow2"));
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + data, host_.image("vm-2.qcow2"), "1M"});
  std::filesystem::remove(data);
  ASSERT_EQ(::mkfifo(data.c_str(), 0600), 0);  // who opened it would wait for ever, or complain of it
  expect_refused({"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("disk vdb"), HasSubstr("external data file"), HasSubstr("nothing was changed")));
  host_.varve_ok({"where", "vm"});
  host_.varve_ok({"vm", "show", "vm"});
}

TEST_F(BadInputTest, DisksThatAreNotThereAreRefused) {
  expect_refused({"snapshot", "create", "vm", "s", "--disk", "vdz=no"}, 3,
                 AllOf(HasSubstr("there is no disk vdz"), HasSubstr("it has vda, vdb")));
  expect_refused({"snapshot", "create", "vm", "s", "--disk", "vda"}, 2, HasSubstr("--disk vda is not understood"));
  expect_refused({"snapshot", "create", "vm", "s", "--disk", "vda=external"}, 3, HasSubstr("'external'"));
  expect_refused({"snapshot", "create", "vm", "s", "--disk", "vda=no", "--disk", "vdb=no"}, 3,
                 HasSubstr("no disk is selected for the snapshot"));
  expect_refused({"snapshot", "revert", "vm", "base", "--disk", "vdz"}, 3, HasSubstr("disk vdz is not part of it"));
}

TEST_F(BadInputTest, ASnapshotMissingInOneOfTwoDisksIsNotReverted) {
  test::run_ok({"qemu-img", "snapshot", "-c", "experiment", host_.image("vm-2.qcow2")});
  test::run_ok({"qemu-img", "snapshot", "-d", "base", host_.image("vm-2.qcow2")});
  host_.fill("vm.qcow2", 2);
  expect_refused({"snapshot", "revert", "vm", "base"}, 3,
                 AllOf(HasSubstr("snapshot 'base' of 'vm' is not reverted: disk vdb has no snapshot of that name"),
                       HasSubstr("vm-2.qcow2 holds experiment"), HasSubstr("nothing was changed"),
                       HasSubstr("`--disk vda` reverts vda alone")));
  expect_refused({"snapshot", "edit", "vm", "base", "--name", "x"}, 3, HasSubstr("disk vdb"));
  host_.varve_ok({"snapshot", "revert", "vm", "base", "--disk", "vda"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

// What the table says of a snapshot is a lie in one of the two images: everything can be looked at, nothing that needs
// the truth is begun.
TEST_F(BadInputTest, ASnapshotThatIsDamagedInOneDiskIsNamedAndNoneIsChanged) {
  const std::string image = test::read_whole_file(host_.image("vm-2.qcow2"));
  const auto table = static_cast<std::streamoff>(load_be<uint64_t>(std::as_bytes(std::span(image)).data() + 64));
  host_.fill("vm.qcow2", 2);
  using namespace std::string_literals;
  patch("vm-2.qcow2", table, "\0\0\x01\0\0\0\0\0"s);  // its L1 table, far behind the end of the file
  const auto damaged = AllOf(HasSubstr("disk vdb"),
                             HasSubstr("snapshot 'base' (id 1) is damaged: its L1 table (offset "
                                       "0x10000000000, 1 entries) lies outside of the file"),
                             HasSubstr("nothing was changed"), HasSubstr("convert"));
  expect_refused({"snapshot", "create", "vm", "s"}, 3, damaged);
  expect_refused({"snapshot", "revert", "vm", "base"}, 3, damaged);
  expect_refused({"snapshot", "delete", "vm", "base"}, 3, damaged);
  EXPECT_THAT(host_.varve_ok({"snapshot", "list", "vm"}), HasSubstr("base"));
  EXPECT_THAT(host_.varve({"where", "vm", "base"}).out, AllOf(HasSubstr("NOT COMPLETE"), HasSubstr("is damaged")));
  EXPECT_THAT(host_.varve({"where", "vm"}).out, HasSubstr("is damaged"));
  host_.varve_ok({"snapshot", "revert", "vm", "base", "--disk", "vda"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

// What only the damaged snapshot holds would look like leaks to the repair that comes before the first write.
TEST_F(BadInputTest, ADirtyImageWithADamagedSnapshotIsNotRepairedUnasked) {
  const std::string path = host_.image("vm-2.qcow2");
  const std::string image = test::read_whole_file(path);
  const auto table = static_cast<std::streamoff>(load_be<uint64_t>(std::as_bytes(std::span(image)).data() + 64));
  using namespace std::string_literals;
  patch("vm-2.qcow2", table, "\0\0\x01\0\0\0\0\0"s);
  patch("vm-2.qcow2", 79, "\1");
  const std::string before = test::read_whole_file(path);
  const test::ProcessResult result = host_.varve({"image", "resize", "-f", "qcow2", path, "+1M"});
  EXPECT_EQ(result.exit_code, 1) << result.out;
  EXPECT_THAT(result.err, HasSubstr("snapshot 'base' (id 1) is damaged"));
  EXPECT_EQ(test::read_whole_file(path), before);
}

// The disk of a snapshot that is larger than its table: no way back, but every other one.
TEST_F(BadInputTest, ASnapshotOfAnImpossibleDiskIsNotRevertedToAndCanBeDeleted) {
  const std::string image = test::read_whole_file(host_.image("vm-2.qcow2"));
  const auto table = static_cast<std::streamoff>(load_be<uint64_t>(std::as_bytes(std::span(image)).data() + 64));
  patch("vm-2.qcow2", table + 48, std::string(8, '\xff'));
  expect_refused({"snapshot", "revert", "vm", "base"}, 3,
                 AllOf(HasSubstr("disk vdb"), HasSubstr("belongs to a disk of impossible size")));
  host_.varve_ok({"snapshot", "create", "vm", "other"});
  host_.varve_ok({"snapshot", "delete", "vm", "base"});
  test::run_ok({"qemu-img", "check", host_.image("vm-2.qcow2")});
}

TEST_F(BadInputTest, AnImageInUseByQemuIsRefusedWithItsHolder) {
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm-2.qcow2")});
  user.write("write 0 64k\nflush\n");
  ASSERT_TRUE(user.wait_for("wrote"));
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"snapshot", "create", "vm", "s"},
                                             {"snapshot", "revert", "vm", "base"},
                                             {"snapshot", "delete", "vm", "base"},
                                             {"snapshot", "edit", "vm", "base", "--name", "x"},
                                             {"vm", "undefine", "vm", "--snapshots"}}) {
    SCOPED_TRACE(command[1]);
    expect_refused(command, 5, AllOf(HasSubstr("disk vdb"), HasSubstr(std::to_string(user.pid()))));
  }
}

TEST_F(BadInputTest, DamagedImagesAreRefused) {
  const auto pristine = test::read_whole_file(host_.image("vm-2.qcow2"));
  const auto damage = [&](const char* what, std::streamoff offset, const std::string& bytes, const char* message) {
    SCOPED_TRACE(what);
    patch("vm-2.qcow2", offset, bytes);
    expect_refused({"snapshot", "create", "vm", "s"}, 3, AllOf(HasSubstr("disk vdb"), HasSubstr(message)));
    expect_refused({"snapshot", "revert", "vm", "base"}, 3, HasSubstr("disk vdb"));
    std::ofstream(host_.image("vm-2.qcow2"), std::ios::binary | std::ios::trunc) << pristine;
  };
  using namespace std::string_literals;
  damage("wrong magic", 0, "NOPE", "");
  damage("cluster size out of range", 20, "\0\0\0\x3f"s, "");
  damage("L1 table outside the file", 40, "\0\0\x7f\xff\xff\xff\0\0"s, "");
  damage("refcount table outside the file", 48, "\0\0\x7f\xff\xff\xff\0\0"s, "");
  damage("refcount table misaligned", 48, "\0\0\0\0\0\1\0\1"s, "");
  damage("snapshot table outside the file", 64, "\0\0\x7f\xff\xff\xff\0\0"s, "");
  damage("too many snapshots", 60, "\xff\xff\xff\xff"s, "");
  damage("an unknown incompatible feature", 72, "\x40\0\0\0\0\0\0\0"s, "");
  damage("dirty", 79, "\1", "");
  damage("corrupt", 79, "\2", "");
}

TEST_F(BadInputTest, ATruncatedImageIsRefused) {
  std::filesystem::resize_file(host_.image("vm-2.qcow2"), 100);
  expect_refused({"snapshot", "create", "vm", "s"}, 3, HasSubstr("disk vdb"));
}

TEST_F(BadInputTest, AMissingImageIsRefused) {
  std::filesystem::remove(host_.image("vm-2.qcow2"));
  expect_refused({"snapshot", "create", "vm", "s"}, 3, HasSubstr("vm-2.qcow2"));
  expect_refused({"snapshot", "delete", "vm", "base"}, 3,
                 AllOf(HasSubstr("vm-2.qcow2"), HasSubstr("`--metadata-only` forgets the snapshot")));
}

TEST_F(BadInputTest, AnImageThatTheUserMayNotWriteIsRefused) {
  REQUIRES_ROOT();
  REQUIRES_PROGRAM("setpriv");
  // Somebody else's host, in which one image belongs to root.
  std::filesystem::permissions(std::filesystem::path(host_.root()).parent_path(), std::filesystem::perms(0755));
  std::filesystem::copy_file(VARVE_COMMAND, scratch_ / "varve");
  std::filesystem::permissions(scratch_.path(), std::filesystem::perms(0755));
  test::run_ok({"chown", "-R", "65534:65534", host_.root()});
  test::run_ok({"chown", "0:0", host_.image("vm-2.qcow2")});
  std::filesystem::permissions(host_.image("vm-2.qcow2"), std::filesystem::perms(0444));
  const auto before = host_.contents();
  const auto refused = test::run({"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", scratch_ / "varve",
                                  "-c", "dir:" + host_.root(), "snapshot", "create", "vm", "s"});
  EXPECT_EQ(refused.exit_code, 3) << refused.err;
  EXPECT_THAT(refused.err,
              AllOf(HasSubstr("disk vdb"), HasSubstr("Permission denied"), HasSubstr("nothing was changed")));
  EXPECT_TRUE(host_.contents() == before);
}

TEST_F(BadInputTest, XmlThatIsNoneOrTooClever) {
  expect_refused({"vm", "define", scratch_.write("a.xml", "<domain><name>x</name>")}, 1, HasSubstr("a.xml"));
  expect_refused({"vm", "define", scratch_.write("b.xml", "<network><name>x</name></network>")}, 1,
                 HasSubstr("domain"));
  std::string bomb = "<!DOCTYPE d [<!ENTITY a0 'ha'>";
  for (int i = 1; i < 30; ++i) bomb += fmt::format("<!ENTITY a{} '&a{};&a{};'>", i, i - 1, i - 1);
  bomb += "]><domain type='kvm'><name>&a29;</name></domain>";
  expect_refused({"vm", "define", scratch_.write("bomb.xml", bomb)}, 3, HasSubstr("bomb.xml"));
  expect_refused({"vm", "define",
                  scratch_.write("outside.xml",
                                 "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
                                 "<domain type='kvm'><name>x</name><title>&x;</title></domain>")},
                 3, Not(HasSubstr("root:")));
  expect_refused({"vm", "define", scratch_.write("name.xml", "<domain type='kvm'><name>../x</name></domain>")}, 1,
                 HasSubstr("name"));
  expect_refused({"vm", "define", scratch_ / "not-there.xml"}, 4, HasSubstr("not-there.xml"));
}

TEST_F(BadInputTest, XmlThatBreaksTheSchemaIsRefusedLineByLine) {
  if (!std::filesystem::exists("/usr/share/libvirt/schemas/domain.rng")) GTEST_SKIP() << "needs libvirt's schemas";
  std::string xml = host_.varve_ok({"vm", "show", "vm", "--xml"});
  xml.replace(xml.find("<vcpu"), 5, "<wcpu");
  xml.replace(xml.find("</vcpu>"), 7, "</wcpu>");
  expect_refused({"vm", "define", scratch_.write("schema.xml", xml)}, 2, HasSubstr("schema.xml"));
}

TEST_F(BadInputTest, TwoDisksWithOneImageAreRefused) {
  replace_in_definition("images/vm-2.qcow2", "images/vm.qcow2");
  expect_refused({"snapshot", "create", "vm", "s"}, 3, HasSubstr("disks vda and vdb have the same image"));
}

TEST_F(BadInputTest, ASymbolicLinkLeadsNowhereOutsideOfTheHost) {
  const std::string outside = scratch_ / "outside.qcow2";
  std::filesystem::copy(host_.image("vm-2.qcow2"), outside);
  std::filesystem::remove(host_.image("vm-2.qcow2"));
  std::filesystem::create_symlink(outside, host_.image("vm-2.qcow2"));
  const std::string before = test::read_whole_file(outside);
  const auto refused = host_.varve({"snapshot", "create", "vm", "s"});
  EXPECT_EQ(refused.exit_code, 3) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("disk vdb"));
  EXPECT_EQ(test::read_whole_file(outside), before);
}

TEST_F(BadInputTest, AHostWithARunningLibvirtdIsForLookingOnly) {
  const std::string directory = host_.root() + "/run/libvirt";
  std::filesystem::create_directories(directory);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = directory + "/libvirt-sock";
  ASSERT_LT(path.size(), sizeof address.sun_path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(socket.get(), 5), 0);
  expect_refused({"snapshot", "create", "vm", "s"}, 3,
                 AllOf(HasSubstr("a libvirtd runs on"), HasSubstr("systemctl stop"), HasSubstr("nothing was changed")));
  expect_refused({"snapshot", "delete", "vm", "base"}, 3, HasSubstr("libvirtd"));
  expect_refused({"vm", "undefine", "vm", "--snapshots"}, 3, HasSubstr("libvirtd"));
  host_.varve_ok({"snapshot", "list", "vm"});
}

TEST_F(BadInputTest, UsageErrorsSayWhatIsMeant) {
  expect_refused({"snapshot", "create"}, 2, HasSubstr("--help"));
  expect_refused({"snapshot", "frobnicate", "vm"}, 2, HasSubstr("frobnicate"));
  expect_refused({"snapshot", "edit", "vm", "base"}, 2, HasSubstr("--name NEW"));
  expect_refused({"vm", "create", "new", "--disk", "huge"}, 2, HasSubstr("neither a size nor a path"));
  expect_refused({"vm", "create", "new", "--disk", "1G,format=vmdk"}, 2, HasSubstr("qcow2"));
  const auto uri = test::run({VARVE_COMMAND, "-c", "http://x", "vm", "list"});
  EXPECT_EQ(uri.exit_code, 2);
  EXPECT_THAT(uri.err, HasSubstr("dir:ROOT"));
}

TEST_F(BadInputTest, AJournalRecordThatCannotBeUnderstoodStopsItsDomainOnly) {
  std::filesystem::create_directories(host_.root() + "/var/lib/varve/journal");
  const std::string record = host_.root() + "/var/lib/varve/journal/vm.journal";
  std::ofstream(record) << "VARVEJNL\1\2\3";
  expect_refused({"snapshot", "create", "vm", "s"}, 1, HasSubstr(record));
  host_.make_domain("other", 1);
  host_.varve_ok({"snapshot", "create", "other", "s"});
}

}  // namespace
}  // namespace varve
