// `varve vm recover`: what a host has lost of a domain comes back from another host's files, from the host's own, and
// from the images.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "interop/libvirt_domain.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

void copy_tree(const std::string& from, const std::string& to) {
  std::filesystem::create_directories(to);
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
}

class RecoverCommandTest : public testing::Test {
 protected:
  RecoverCommandTest() {
    old_.make_domain("vm");
    old_.fill("vm.qcow2", 1);
    old_.varve_ok({"snapshot", "create", "vm", "first"});
    old_.varve_ok({"snapshot", "create", "vm", "zweiter Stand ä"});
  }
  void bring_images() const {
    std::filesystem::remove_all(new_.root() + "/var/lib/libvirt/images");
    copy_tree(old_.root() + "/var/lib/libvirt/images", new_.root() + "/var/lib/libvirt/images");
  }

  test::HostDirectory old_;
  test::HostDirectory new_;
};

TEST_F(RecoverCommandTest, FromTheDiskOfADeadHost) {
  bring_images();
  const json result = new_.varve_json({"vm", "recover", "--from", "dir:" + old_.root()});
  ASSERT_EQ(result.size(), 1u);
  EXPECT_EQ(result[0]["defined"], true);
  EXPECT_EQ(result[0]["put_back"], json({"first", "zweiter Stand ä"}));
  EXPECT_THAT(result[0]["findings"], IsEmpty());
  const json list = new_.varve_json({"snapshot", "list", "vm"});
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[1]["current"], true);
  EXPECT_EQ(list[1]["parent"], "first");
  new_.varve_ok({"snapshot", "revert", "vm", "first"});
  EXPECT_TRUE(new_.is_filled("vm.qcow2", 1));
  // Once more changes nothing.
  EXPECT_THAT(new_.varve_ok({"vm", "recover", "vm", "--from", "dir:" + old_.root()}), HasSubstr("nothing was lost"));
}

TEST_F(RecoverCommandTest, ImagesThatAreNotThereAreSaidWithTheCommandThatBringsThem) {
  std::filesystem::create_directories(new_.root() + "/var/lib/libvirt/images");
  const auto before = new_.contents();
  const test::ProcessResult refused = new_.varve({"vm", "recover", "vm", "--from", "dir:" + old_.root()});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_EQ(new_.contents(), before);
  std::string command = refused.err.substr(refused.err.find("`cp") + 1);
  command = command.substr(0, command.find('`'));
  test::run_ok({"sh", "-c", command});
  EXPECT_TRUE(std::filesystem::exists(new_.image("vm.qcow2")));
}

TEST_F(RecoverCommandTest, ADefinitionThatIsGoneComesOutOfTheNewestSnapshot) {
  std::filesystem::remove(old_.definition("vm"));
  const test::ProcessResult verify = old_.varve({"verify"});
  EXPECT_THAT(verify.out, HasSubstr("varve vm recover 'vm'"));
  EXPECT_THAT(old_.varve_ok({"vm", "recover"}), HasSubstr("vm: defined"));
  EXPECT_EQ(old_.varve_json({"snapshot", "list", "vm"}).size(), 2u);
  EXPECT_EQ(old_.varve_json({"verify"})["status"], "ok");
}

TEST_F(RecoverCommandTest, PointsThatNobodyKnowsAreAdopted) {
  std::filesystem::remove_all(old_.root() + "/var/lib/libvirt/qemu/snapshot/vm");
  const json result = old_.varve_json({"vm", "recover", "vm"});
  EXPECT_EQ(result[0]["adopted"], json({"first", "zweiter Stand ä"}));
  EXPECT_EQ(old_.varve_json({"verify"})["status"], "ok");
}

TEST_F(RecoverCommandTest, WhatIsNowhereIsNotFound) {
  const test::ProcessResult none = new_.varve({"vm", "recover", "vm", "--from", "dir:" + old_.root() + "/etc"});
  EXPECT_EQ(none.exit_code, 4);
  EXPECT_THAT(none.err, HasSubstr("there is nothing to recover 'vm' from"));
  const test::ProcessResult no_host = new_.varve({"vm", "recover", "vm", "--from", "dir:/nonexistent"});
  EXPECT_EQ(no_host.exit_code, 4);
}

// Another machine of that name has its own images, which hold nothing of it.
TEST_F(RecoverCommandTest, SnapshotsOfAnotherMachineAreNotPutBack) {
  new_.make_domain("vm");
  const test::ProcessResult result = new_.varve({"vm", "recover", "vm", "--from", "dir:" + old_.root()});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("nothing was lost"));
  EXPECT_THAT(result.err, HasSubstr("'first' is not put back"));
  EXPECT_THAT(new_.varve_json({"snapshot", "list", "vm"}), IsEmpty());
}

class RecoverOnLibvirtTest : public test::LibvirtDomain {
 protected:
  void SetUp() override {
    LibvirtDomain::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    host_.fill("vm.qcow2", 1);
    virsh({"snapshot-create-as", "vm", "first", "the beginning"});
    host_.fill("vm.qcow2", 2);
    virsh({"snapshot-create-as", "vm", "second"});
    copy_tree(host_.root() + "/etc/libvirt", backup_ + "/etc/libvirt");
    copy_tree(host_.root() + "/var/lib/libvirt/qemu/snapshot", backup_ + "/var/lib/libvirt/qemu/snapshot");
  }
  void expect_recovered() const {
    EXPECT_THAT(snapshots(), ElementsAre("first", "second"));
    EXPECT_EQ(names({"snapshot-parent", "vm", "second"}).at(0), "first");
    EXPECT_EQ(current(), "second");
    EXPECT_THAT(virsh({"snapshot-dumpxml", "vm", "first"}), HasSubstr("the beginning"));
    expect_sound();
    virsh({"snapshot-revert", "vm", "first"});
    EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  }

  test::TempDir directory_;
  const std::string backup_ = directory_ / "backup";
};

TEST_F(RecoverOnLibvirtTest, AnUndefinedDomain) {
  virsh({"undefine", "vm", "--snapshots-metadata"});
  EXPECT_THAT(varve_ok({"vm", "recover", "vm", "--from", "dir:" + backup_}), HasSubstr("vm: defined; 2 snapshots"));
  expect_recovered();
}

TEST_F(RecoverOnLibvirtTest, ADomainThatWasDefinedAgainUnderAnotherUuid) {
  std::string definition = virsh({"dumpxml", "vm"});
  virsh({"undefine", "vm", "--snapshots-metadata"});
  const size_t begin = definition.find("<uuid>");
  definition.erase(begin, definition.find("</uuid>") + 7 - begin);
  std::ofstream(backup_ + "/vm.xml") << definition;
  virsh({"define", backup_ + "/vm.xml"});
  varve_ok({"vm", "recover", "--from", "dir:" + backup_});
  expect_recovered();
}

TEST_F(RecoverOnLibvirtTest, FilesThatLibvirtdDidNotLoad) {
  virsh({"undefine", "vm", "--snapshots-metadata"});
  virsh({"define", backup_ + "/etc/libvirt/qemu/vm.xml"});
  // What users do who find the files: they copy them back, and nothing happens.
  std::filesystem::copy(backup_ + "/var/lib/libvirt/qemu/snapshot", host_.root() + "/var/lib/libvirt/qemu/snapshot",
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(snapshots(), IsEmpty());
  const json report = json_of({"verify", "vm"});
  EXPECT_EQ(report["status"], "critical");
  std::vector<std::string> kinds;
  for (const json& finding : report["domains"][0]["findings"]) kinds.push_back(finding["kind"]);
  EXPECT_THAT(kinds, ElementsAre("unloaded-metadata", "unloaded-metadata"));
  varve_ok({"vm", "recover", "vm"});
  expect_recovered();
}

TEST_F(RecoverOnLibvirtTest, PointsThatNobodyKnows) {
  virsh({"snapshot-delete", "vm", "second", "--metadata"});
  const json report = json_of({"verify", "vm"});
  EXPECT_EQ(report["status"], "warning");
  EXPECT_THAT(varve_ok({"vm", "recover", "vm"}), HasSubstr("1 adopted that no metadata knew: second"));
  EXPECT_THAT(snapshots(), UnorderedElementsAre("first", "second"));
  expect_sound();
  // verify --repair does the same.
  virsh({"snapshot-delete", "vm", "second", "--metadata"});
  varve({"verify", "vm", "--repair"});
  EXPECT_THAT(snapshots(), UnorderedElementsAre("first", "second"));
}

TEST_F(RecoverOnLibvirtTest, MetadataOfWhatIsGoneIsKeptAside) {
  test::run_ok({"qemu-img", "snapshot", "-d", "second", host_.image("vm.qcow2")});
  test::run_ok({"qemu-img", "snapshot", "-d", "second", host_.image("vm-2.qcow2")});
  EXPECT_EQ(json_of({"verify", "vm"})["status"], "critical");
  varve({"verify", "vm", "--repair"});
  EXPECT_THAT(snapshots(), ElementsAre("first"));
  EXPECT_TRUE(std::filesystem::exists(host_.root() + "/var/lib/varve/aside/vm/second.xml"));
  expect_sound();
}

}  // namespace
}  // namespace varve
