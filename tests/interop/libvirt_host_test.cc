// The varve command on the domains of a real libvirtd: `-c qemu:///system`, shut-off domains, whose images varve opens
// itself. What the one makes, the other lists, reverts to and deletes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <regex>

#include "base/atomic_file.h"
#include "interop/libvirt_domain.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

using LibvirtHostTest = test::LibvirtDomain;

// But for what differs between any two snapshots.
std::string without_name_and_time(const std::string& xml) {
  return std::regex_replace(std::regex_replace(xml, std::regex("<name>(first|second)</name>"), "<name/>"),
                            std::regex("<creationTime>[0-9]+</creationTime>"), "<creationTime/>");
}

TEST_F(LibvirtHostTest, WhatLibvirtMadeIsListedAndShown) {
  virsh({"snapshot-create-as", "vm", "first", "Vor dem \"Update\" & danach"});
  virsh({"snapshot-create-as", "vm", "zweiter Stand ä"});
  const json domains = varve_json({"vm", "list"});
  ASSERT_EQ(domains.size(), 1u);
  EXPECT_EQ(domains[0]["name"], "vm");
  EXPECT_EQ(domains[0]["state"], "shutoff");
  EXPECT_EQ(domains[0]["snapshots"], 2);
  EXPECT_EQ(domains[0]["current"], "zweiter Stand ä");

  const json list = varve_json({"snapshot", "list", "vm"});
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["name"], "first");
  EXPECT_EQ(list[0]["description"], "Vor dem \"Update\" & danach");
  EXPECT_EQ(list[0]["current"], false);
  EXPECT_EQ(list[1]["parent"], "first");
  EXPECT_EQ(list[1]["current"], true);
  EXPECT_EQ(varve_ok({"snapshot", "list", "vm", "--tree"}), "first\n  |\n  +- zweiter Stand ä  (current)\n    \n");
  EXPECT_EQ(varve_ok({"snapshot", "show", "vm", "first", "--xml"}) + "\n", virsh({"snapshot-dumpxml", "vm", "first"}));
  EXPECT_EQ(varve_ok({"vm", "show", "vm", "--xml"}) + "\n", virsh({"dumpxml", "vm"}));
  const json where = varve_json({"where", "vm", "first"});
  EXPECT_EQ(where["complete"], true) << where.dump(2);
  EXPECT_EQ(where["metadata"]["exists"], true);
  expect_sound();
}

TEST_F(LibvirtHostTest, WhatVarveMakesIsAsLibvirtMakesIt) {
  virsh({"snapshot-create-as", "vm", "first"});
  virsh({"snapshot-delete", "vm", "first", "--metadata"});
  const std::string theirs = [&] {
    virsh({"snapshot-create-as", "vm", "second"});
    std::string xml = virsh({"snapshot-dumpxml", "vm", "second"});
    virsh({"snapshot-delete", "vm", "second"});
    return xml;
  }();
  varve_ok({"image", "snapshot", "-d", "first", host_.image("vm.qcow2")});
  varve_ok({"image", "snapshot", "-d", "first", host_.image("vm-2.qcow2")});
  varve_ok({"snapshot", "create", "vm", "first"});
  EXPECT_EQ(without_name_and_time(virsh({"snapshot-dumpxml", "vm", "first"})), without_name_and_time(theirs));
  EXPECT_EQ(current(), "first");
  expect_points({"first"});
}

TEST_F(LibvirtHostTest, LibvirtRevertsToAndDeletesWhatVarveMade) {
  host_.fill("vm.qcow2", 1);
  varve_ok({"snapshot", "create", "vm", "first", "--description", "one & only"});
  host_.fill("vm.qcow2", 2);
  varve_ok({"snapshot", "create", "vm", "zweiter Stand ä"});
  host_.fill("vm.qcow2", 3);
  EXPECT_THAT(snapshots(), ElementsAre("first", "zweiter Stand ä"));
  EXPECT_EQ(names({"snapshot-parent", "vm", "zweiter Stand ä"}).at(0), "first");
  EXPECT_THAT(virsh({"snapshot-dumpxml", "vm", "first"}), HasSubstr("<description>one &amp; only</description>"));
  virsh({"snapshot-revert", "vm", "first"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_EQ(varve_json({"snapshot", "list", "vm"})[0]["current"], true);
  virsh({"snapshot-delete", "vm", "zweiter Stand ä"});
  expect_points({"first"});
  expect_sound();
}

TEST_F(LibvirtHostTest, VarveRevertsRenamesAndDeletesWhatLibvirtMade) {
  host_.fill("vm.qcow2", 1);
  virsh({"snapshot-create-as", "vm", "first"});
  host_.fill("vm.qcow2", 2);
  virsh({"snapshot-create-as", "vm", "second"});
  host_.fill("vm.qcow2", 3);
  const std::string safety = varve_json({"snapshot", "revert", "vm", "first"})["safety"];
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_EQ(current(), "first");
  EXPECT_THAT(snapshots(), UnorderedElementsAre("first", "second", safety));
  EXPECT_EQ(names({"snapshot-parent", "vm", safety}).at(0), "second");

  // libvirt leaves the old name in the image; both change here.
  varve_ok({"snapshot", "edit", "vm", "first", "--name", "Anfang", "--description", "renamed"});
  EXPECT_EQ(current(), "Anfang");
  EXPECT_EQ(names({"snapshot-parent", "vm", "second"}).at(0), "Anfang");
  EXPECT_EQ(host_.points("vm.qcow2").front(), "Anfang");
  virsh({"snapshot-revert", "vm", "second"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 2));

  varve_ok({"snapshot", "delete", "vm", "second"});
  EXPECT_EQ(current(), "Anfang");
  EXPECT_EQ(names({"snapshot-parent", "vm", safety}).at(0), "Anfang");
  varve_ok({"snapshot", "delete", "vm", "Anfang", "--children"});
  EXPECT_THAT(snapshots(), IsEmpty());
  expect_points({});
  expect_sound();
}

TEST_F(LibvirtHostTest, TheDefinitionComesBackWithARevert) {
  varve_ok({"snapshot", "create", "vm", "first"});
  virsh({"setvcpus", "vm", "4", "--config", "--maximum"});
  varve_ok({"snapshot", "revert", "vm", "first"});
  EXPECT_THAT(virsh({"dumpxml", "vm"}), HasSubstr(">1</vcpu>"));
}

TEST_F(LibvirtHostTest, PasswordsSurvive) {
  std::string definition = virsh({"dumpxml", "vm", "--security-info"});
  definition.insert(definition.find("</devices>"), "<graphics type='vnc' passwd='geheim'/>");
  const std::string file = host_.root() + "/vm.xml";
  ASSERT_TRUE(replace_file(file, definition, {}));
  virsh({"define", file});
  virsh({"snapshot-create-as", "vm", "first"});
  varve_ok({"snapshot", "create", "vm", "second"});
  varve_ok({"snapshot", "edit", "vm", "first", "--description", "changed"});
  varve_ok({"snapshot", "revert", "vm", "second"});
  for (const char* name : {"first", "second"}) {
    EXPECT_THAT(virsh({"snapshot-dumpxml", "vm", name, "--security-info"}), HasSubstr("passwd='geheim'")) << name;
    EXPECT_EQ(varve_ok({"snapshot", "show", "vm", name, "--xml"}).find("geheim"), std::string::npos);
  }
  EXPECT_THAT(virsh({"dumpxml", "vm", "--security-info"}), HasSubstr("passwd='geheim'"));
}

TEST_F(LibvirtHostTest, UndefineTakesTheSnapshotsWithIt) {
  virsh({"snapshot-create-as", "vm", "first"});
  const test::ProcessResult refused = varve({"vm", "undefine", "vm"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("first"));
  varve_ok({"vm", "undefine", "vm", "--snapshots"});
  EXPECT_THAT(names({"list", "--all", "--name"}), IsEmpty());
  expect_points({});
}

TEST_F(LibvirtHostTest, ADomainIsMadeAndDefined) {
  varve_ok({"vm", "create", "second", "--type", "qemu", "--disk", "64M"});
  EXPECT_THAT(names({"list", "--all", "--name"}), UnorderedElementsAre("vm", "second"));
  const std::string file = host_.root() + "/third.xml";
  const std::string second = virsh({"dumpxml", "second"});
  const std::string renamed = std::regex_replace(second, std::regex("<name>.*</name>"), "<name>third</name>");
  ASSERT_TRUE(replace_file(file, std::regex_replace(renamed, std::regex("<uuid>.*</uuid>"), ""), {}));
  varve_ok({"vm", "define", file});
  EXPECT_THAT(names({"list", "--all", "--name"}), UnorderedElementsAre("vm", "second", "third"));
}

TEST_F(LibvirtHostTest, ARevertUnderASavedMemoryIsRefused) {
  varve_ok({"snapshot", "create", "vm", "first"});
  virsh({"start", "vm"});
  virsh({"managedsave", "vm"});
  const test::ProcessResult refused = varve({"snapshot", "revert", "vm", "first"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("managedsave-remove"));
  virsh({"managedsave-remove", "vm"});
  varve_ok({"snapshot", "revert", "vm", "first"});
}

TEST_F(LibvirtHostTest, WhatIsNotThereIsSaid) {
  const test::ProcessResult no_domain = varve({"snapshot", "list", "other"});
  EXPECT_EQ(no_domain.exit_code, 4);
  EXPECT_THAT(no_domain.err, HasSubstr("there are: vm"));
  const test::ProcessResult no_snapshot = varve({"snapshot", "show", "vm", "none"});
  EXPECT_EQ(no_snapshot.exit_code, 4);
  EXPECT_THAT(no_snapshot.err, HasSubstr("'vm' has no snapshot 'none'"));
  libvirtd_->stop();
  const test::ProcessResult none = test::run({VARVE_COMMAND, "-c", "qemu:///system?socket=/nonexistent", "vm", "list"});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, HasSubstr("is libvirtd running?"));
}

TEST_F(LibvirtHostTest, TheDirectoryBelowARunningLibvirtdIsForLookingOnly) {
  const test::ProcessResult refused = libvirtd_->run_there({VARVE_COMMAND, "-c", "dir:/", "snapshot", "create", "vm"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("varve -c qemu:///system"));
  // By default, it is the libvirtd that answers.
  const test::ProcessResult chosen = libvirtd_->run_there({VARVE_COMMAND, "host"});
  EXPECT_THAT(chosen.out, HasSubstr("qemu:///system"));
}

// What the test suites of libvirt look at, too (tp-libvirt's virsh.snapshot_create_as and its neighbours).
TEST_F(LibvirtHostTest, NamesThatAreNoneAreRefusedAndOddOnesWork) {
  for (const char* name : {"a/b", "..", ".hidden"}) {
    EXPECT_EQ(varve({"snapshot", "create", "vm", name}).exit_code, 2) << name;
  }
  for (const char* name : {"a--a", "Ünïcode & <more>", "1", "with space"}) {
    varve_ok({"snapshot", "create", "vm", name});
    EXPECT_EQ(current(), name);
  }
  EXPECT_EQ(varve({"snapshot", "create", "vm", "1"}).exit_code, 3);
  for (const char* name : {"a--a", "Ünïcode & <more>", "1", "with space"}) virsh({"snapshot-delete", "vm", name});
  expect_points({});
}

TEST_F(LibvirtHostTest, ADiskThatItsDefinitionLeavesOutIsNotTouched) {
  std::string definition = virsh({"dumpxml", "vm"});
  const size_t disk = definition.rfind("<disk type='file' device='disk'", definition.find("vm-2.qcow2"));
  definition.insert(disk + std::string("<disk").size(), " snapshot='no'");
  const std::string file = host_.root() + "/vm.xml";
  ASSERT_TRUE(replace_file(file, definition, {}));
  virsh({"define", file});
  const test::ProcessResult made = varve({"snapshot", "create", "vm", "first"});
  EXPECT_EQ(made.exit_code, 0);
  EXPECT_THAT(made.err, HasSubstr("disk vdb is not part of the snapshot"));
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("first"));
  EXPECT_THAT(host_.points("vm-2.qcow2"), IsEmpty());
  virsh({"snapshot-revert", "vm", "first"});
  EXPECT_EQ(varve({"snapshot", "revert", "vm", "first"}).exit_code, 0);
  expect_sound();
}

TEST_F(LibvirtHostTest, WhereDeletingFailsTheMetadataStays) {
  varve_ok({"snapshot", "create", "vm", "first"});
  {
    test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm-2.qcow2")});
    user.write("write -P 1 0 64k\n");
    ASSERT_TRUE(user.wait_for("wrote")) << user.output();
    const test::ProcessResult refused = varve({"snapshot", "delete", "vm", "first"});
    EXPECT_EQ(refused.exit_code, 5);
    EXPECT_THAT(refused.err, HasSubstr("vm-2.qcow2"));
  }
  EXPECT_THAT(snapshots(), ElementsAre("first"));
  expect_points({"first"});
  varve_ok({"snapshot", "delete", "vm", "first"});
}

TEST_F(LibvirtHostTest, WhatLibvirtRenamedInItsMetadataAloneIsFoundAndMended) {
  virsh({"snapshot-create-as", "vm", "first"});
  std::string document = virsh({"snapshot-dumpxml", "vm", "first"});
  document.replace(document.find("<name>first</name>"), std::string("<name>first</name>").size(),
                   "<name>renamed</name>");
  const std::string file = host_.root() + "/renamed.xml";
  ASSERT_TRUE(replace_file(file, document, {}));
  virsh({"snapshot-create", "vm", file, "--redefine", "--current"});
  virsh({"snapshot-delete", "vm", "first", "--metadata"});
  const json report = json_of({"verify", "vm"});
  EXPECT_EQ(report["status"], "critical");
  EXPECT_NE(libvirtd_->virsh({"snapshot-revert", "vm", "renamed"}).exit_code, 0);
  varve({"verify", "vm", "--repair"});
  EXPECT_THAT(snapshots(), ElementsAre("first"));
  virsh({"snapshot-revert", "vm", "first"});
  expect_sound();
}

TEST_F(LibvirtHostTest, ADefinitionThatLibvirtdRefusesLeavesNothingBehind) {
  std::string definition = virsh({"dumpxml", "vm"});
  definition = std::regex_replace(definition, std::regex("<name>vm</name>"), "<name>other</name>");
  definition = std::regex_replace(definition, std::regex("<uuid>.*</uuid>"), "");
  definition =
      std::regex_replace(definition, std::regex("<emulator>.*</emulator>"), "<emulator>/nonexistent/qemu</emulator>");
  const std::string file = host_.root() + "/other.xml";
  ASSERT_TRUE(replace_file(file, definition, {}));
  const test::ProcessResult refused = varve({"vm", "define", file});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("domain 'other' is not defined"));
  EXPECT_THAT(refused.err, HasSubstr("/nonexistent/qemu"));
  EXPECT_THAT(names({"list", "--all", "--name"}), ElementsAre("vm"));
  // Nothing is left to be finished.
  const test::ProcessResult after = varve({"vm", "list"});
  EXPECT_THAT(after.err, IsEmpty());
}

// As the socket for looking is open to everybody, and the other one is not.
TEST_F(LibvirtHostTest, WhoMayOnlyLookLooksAndIsToldWhoMayDoMore) {
  REQUIRES_PROGRAM("setpriv");
  varve_ok({"snapshot", "create", "vm", "first"});
  test::TempDir home;
  home.write("libvirtd.conf",
             "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n"
             "unix_sock_ro_perms = \"0777\"\nunix_sock_rw_perms = \"0700\"\n");
  std::filesystem::copy_file(home / "libvirtd.conf", host_.root() + "/etc/libvirt/libvirtd.conf");
  libvirtd_->restart();
  // The command may lie where only root gets to.
  std::filesystem::copy_file(VARVE_COMMAND, home / "varve");
  constexpr unsigned kNobody = 65534;
  ASSERT_EQ(::chown(home.path().c_str(), kNobody, kNobody), 0);
  const auto as_nobody = [&](const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"setpriv",       "--reuid=65534",       "--regid=65534", "--clear-groups",
                                        "env",           "HOME=" + home.path(), home / "varve",  "-c",
                                        "qemu:///system"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return libvirtd_->run_there(std::move(command));
  };
  const test::ProcessResult list = as_nobody({"snapshot", "list", "vm"});
  EXPECT_EQ(list.exit_code, 0) << list.err;
  EXPECT_THAT(list.out, HasSubstr("first"));
  EXPECT_EQ(as_nobody({"snapshot", "show", "vm", "first"}).exit_code, 0);
  const test::ProcessResult refused = as_nobody({"snapshot", "create", "vm", "second"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("qemu:///system can be looked at, but not changed"));
  EXPECT_THAT(refused.err, HasSubstr("members of the group `libvirt` may change it"));
  EXPECT_EQ(snapshots(), std::vector<std::string>{"first"});
}

}  // namespace
}  // namespace varve
