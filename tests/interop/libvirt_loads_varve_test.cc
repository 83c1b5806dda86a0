// A libvirtd takes over a host that varve commands made, and varve one that libvirtd changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/host_directory.h"
#include "support/libvirtd.h"

namespace varve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::UnorderedElementsAre;

class LibvirtLoadsVarve : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_LIBVIRTD();
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    host_.fill("vm.qcow2", 1);
    host_.varve_ok({"snapshot", "create", "vm", "first", "--description", "Vor dem \"Update\" & danach"});
    host_.fill("vm.qcow2", 2);
    host_.varve_ok({"snapshot", "create", "vm", "zweiter Stand ä"});
    host_.fill("vm.qcow2", 3);
  }
  static std::vector<std::string> lines(const std::string& text) {
    std::vector<std::string> result;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      if (end > begin) result.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return result;
  }
  std::vector<std::string> names_in(const test::Libvirtd& libvirtd) const {
    return lines(libvirtd.virsh_ok({"snapshot-list", "vm", "--name"}));
  }

  test::HostDirectory host_;
};

TEST_F(LibvirtLoadsVarve, ItListsAndDumpsWhatVarveWrote) {
  const std::string ours = host_.varve_ok({"snapshot", "show", "vm", "first", "--xml"});
  const test::Libvirtd libvirtd(host_.root());
  EXPECT_THAT(lines(libvirtd.virsh_ok({"list", "--all", "--name"})), ElementsAre("vm"));
  EXPECT_THAT(names_in(libvirtd), ElementsAre("first", "zweiter Stand ä"));
  EXPECT_THAT(lines(libvirtd.virsh_ok({"snapshot-current", "vm", "--name"})), ElementsAre("zweiter Stand ä"));
  EXPECT_THAT(lines(libvirtd.virsh_ok({"snapshot-parent", "vm", "zweiter Stand ä"})), ElementsAre("first"));
  const std::string theirs = libvirtd.virsh_ok({"snapshot-dumpxml", "vm", "first"});
  EXPECT_THAT(theirs, HasSubstr("<description>Vor dem &quot;Update&quot; &amp; danach</description>"));
  EXPECT_THAT(theirs, HasSubstr("<disk name='vda' snapshot='internal'/>"));
  EXPECT_THAT(theirs, HasSubstr("<disk name='vdb' snapshot='internal'/>"));
  EXPECT_THAT(ours, HasSubstr("<name>first</name>"));
}

TEST_F(LibvirtLoadsVarve, ItRevertsAndDeletesThem) {
  test::Libvirtd libvirtd(host_.root());
  libvirtd.virsh_ok({"snapshot-revert", "vm", "first"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_THAT(lines(libvirtd.virsh_ok({"snapshot-current", "vm", "--name"})), ElementsAre("first"));
  libvirtd.virsh_ok({"snapshot-delete", "vm", "zweiter Stand ä"});
  libvirtd.stop();
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    EXPECT_THAT(host_.points(file), ElementsAre("first"));
    host_.expect_clean(file);
  }
  // And varve goes on from there.
  const auto list = host_.varve_json({"snapshot", "list", "vm"});
  ASSERT_EQ(list.size(), 1u);
  EXPECT_TRUE(list[0]["current"]);
  EXPECT_TRUE(host_.varve_json({"where", "vm", "first"})["complete"]);
}

TEST_F(LibvirtLoadsVarve, VarveRevertsRenamesAndDeletesWhatLibvirtMade) {
  test::Libvirtd libvirtd(host_.root());
  libvirtd.virsh_ok({"snapshot-create-as", "vm", "theirs", "made by virsh"});
  libvirtd.stop();
  host_.fill("vm.qcow2", 4);
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "theirs"})["description"], "made by virsh");
  const std::string safety = host_.varve_json({"snapshot", "revert", "vm", "theirs"})["safety"];
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 3));
  host_.varve_ok({"snapshot", "edit", "vm", "theirs", "--name", "renamed"});
  host_.varve_ok({"snapshot", "delete", "vm", "first"});

  libvirtd.restart();
  EXPECT_THAT(names_in(libvirtd), UnorderedElementsAre("renamed", safety, "zweiter Stand ä"));
  EXPECT_THAT(lines(libvirtd.virsh_ok({"snapshot-current", "vm", "--name"})), ElementsAre("renamed"));
  EXPECT_THAT(libvirtd.virsh_ok({"snapshot-info", "vm", "zweiter Stand ä"}), HasSubstr("Parent:         -"));
  EXPECT_THAT(lines(libvirtd.virsh_ok({"snapshot-parent", "vm", safety})), ElementsAre("renamed"));
  // The mark of a safety snapshot survives libvirtd, and the next revert prunes it.
  libvirtd.virsh_ok({"snapshot-revert", "vm", "renamed"});
  libvirtd.stop();
  host_.varve_ok({"snapshot", "revert", "vm", "renamed"});
  for (const auto& snapshot : host_.varve_json({"snapshot", "list", "vm"})) EXPECT_NE(snapshot["name"], safety);
}

TEST_F(LibvirtLoadsVarve, ASnapshotThatLeavesADiskOutIsLoadedToo) {
  host_.varve_ok({"snapshot", "create", "vm", "part", "--disk", "vdb=no"});
  const test::Libvirtd libvirtd(host_.root());
  EXPECT_THAT(names_in(libvirtd), testing::Contains("part"));
  EXPECT_THAT(libvirtd.virsh_ok({"snapshot-dumpxml", "vm", "part"}), HasSubstr("<disk name='vdb' snapshot='no'/>"));
}

TEST_F(LibvirtLoadsVarve, AnUndefinedDomainIsGoneForLibvirtToo) {
  host_.varve_ok({"vm", "undefine", "vm", "--snapshots", "--storage"});
  const test::Libvirtd libvirtd(host_.root());
  EXPECT_THAT(lines(libvirtd.virsh_ok({"list", "--all", "--name"})), IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm.qcow2")));
}

TEST_F(LibvirtLoadsVarve, ARestoredDefinitionIsTheOneOfThatTime) {
  test::Libvirtd libvirtd(host_.root());
  libvirtd.virsh_ok({"setvcpus", "vm", "4", "--config", "--maximum"});
  EXPECT_THAT(libvirtd.virsh_ok({"dumpxml", "vm"}), HasSubstr(">4</vcpu>"));
  libvirtd.stop();
  host_.varve_ok({"snapshot", "revert", "vm", "first"});
  libvirtd.restart();
  EXPECT_THAT(libvirtd.virsh_ok({"dumpxml", "vm"}), HasSubstr(">1</vcpu>"));
}

}  // namespace
}  // namespace varve
