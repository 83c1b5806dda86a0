// What `varve where` says, against images whose contents are known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/host_directory.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;

class WhereTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
  }
  test::HostDirectory host_;
  test::TempDir scratch_;
};

TEST_F(WhereTest, EveryPartOfASnapshotIsNamed) {
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  const json where = host_.varve_json({"where", "vm", "before"});
  EXPECT_TRUE(where["complete"]);
  EXPECT_EQ(where["metadata"]["host_path"], host_.metadata("vm", "before"));
  EXPECT_EQ(where["metadata"]["path"], "/var/lib/libvirt/qemu/snapshot/vm/before.xml");
  EXPECT_EQ(where["definition"]["host_path"], host_.definition("vm"));
  EXPECT_TRUE(where["definition_in_metadata"]);
  ASSERT_EQ(where["disks"].size(), 2u);
  const json& disk = where["disks"][1];
  EXPECT_EQ(disk["target"], "vdb");
  EXPECT_EQ(disk["image"]["host_path"], host_.image("vm-2.qcow2"));
  const json info =
      json::parse(test::run_ok({"qemu-img", "info", "--output=json", host_.image("vm-2.qcow2")}))["snapshots"][0];
  EXPECT_EQ(disk["entry"]["id"], info["id"]);
  EXPECT_EQ(disk["entry"]["tag"], "before");
  EXPECT_EQ(disk["entry"]["date"], info["date-sec"]);
  EXPECT_EQ(disk["entry"]["vm_state_bytes"], 0);
  EXPECT_EQ(disk["entry"]["disk_bytes"], 64 * kMiB);
}

TEST_F(WhereTest, TheBytesAreThoseThatTheSnapshotReferencesAndThoseThatNothingElseDoes) {
  host_.fill("vm.qcow2", 1, 0, 8);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2, 0, 3);
  const json entry = host_.varve_json({"where", "vm", "a"})["disks"][0]["entry"];
  // Data, one table of mappings, and the list of tables.
  EXPECT_EQ(entry["referenced_bytes"], 8 * kMiB + 2 * kCluster);
  // The disk has its own mappings since the write.
  EXPECT_EQ(entry["exclusive_bytes"], 3 * kMiB + 2 * kCluster);

  const uint64_t before = host_.occupied("vm.qcow2");
  host_.varve_ok({"snapshot", "delete", "vm", "a"});
  EXPECT_LE(host_.occupied("vm.qcow2") + 3 * kMiB, before);
}

TEST_F(WhereTest, TheTextAnswersInWords) {
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  const std::string text = host_.varve_ok({"where", "vm", "before"});
  EXPECT_THAT(text, HasSubstr("complete"));
  EXPECT_THAT(text, HasSubstr("inside of " + host_.image("vm.qcow2")));
  EXPECT_THAT(text, HasSubstr("There is no separate snapshot file"));
  EXPECT_THAT(text, HasSubstr("To restore it elsewhere, take " + host_.image("vm.qcow2") + ", " +
                              host_.image("vm-2.qcow2") + " and " + host_.metadata("vm", "before")));
}

TEST_F(WhereTest, ADiskWhoseImageLostTheSnapshotIsNamed) {
  host_.varve_ok({"snapshot", "create", "vm", "base"});
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  test::run_ok({"qemu-img", "snapshot", "-d", "before", host_.image("vm-2.qcow2")});
  const json where = host_.varve_json({"where", "vm", "before"});
  EXPECT_FALSE(where["complete"]);
  ASSERT_EQ(where["missing"].size(), 1u);
  EXPECT_THAT(where["missing"][0].get<std::string>(), HasSubstr("disk vdb: its image holds no snapshot of that name"));
  EXPECT_THAT(where["missing"][0].get<std::string>(), HasSubstr("base"));
  EXPECT_THAT(where["to_restore"].get<std::string>(), HasSubstr("can't be restored as it is"));
  EXPECT_THAT(host_.varve_ok({"where", "vm"}), HasSubstr("before: disk vdb: " + host_.image("vm-2.qcow2")));
}

TEST_F(WhereTest, AMissingImageIsNamed) {
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  std::filesystem::remove(host_.image("vm.qcow2"));
  const json where = host_.varve_json({"where", "vm", "before"});
  EXPECT_FALSE(where["complete"]);
  EXPECT_FALSE(where["disks"][0]["image"]["exists"]);
  EXPECT_THAT(where["missing"][0].get<std::string>(), HasSubstr(host_.image("vm.qcow2") + " is not there"));
  EXPECT_THAT(host_.varve_ok({"where", "vm", "before"}), HasSubstr("MISSING"));
}

TEST_F(WhereTest, AnImageInUseIsSaidToBeSo) {
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm.qcow2")});
  user.write("write 0 64k\n");
  ASSERT_TRUE(user.wait_for("wrote"));
  const json where = host_.varve_json({"where", "vm", "before"});
  EXPECT_THAT(where["disks"][0]["problem"].get<std::string>(), HasSubstr("in use"));
  EXPECT_TRUE(where["disks"][1]["problem"].is_null());
  // That says nothing about the snapshot.
  EXPECT_TRUE(where["complete"].is_null());
  EXPECT_THAT(where["missing"], IsEmpty());
  EXPECT_THAT(where["hidden"][0].get<std::string>(), HasSubstr("disk vda: "));
  const std::string text = host_.varve_ok({"where", "vm", "before"});
  EXPECT_THAT(text, HasSubstr("complete as far as can be told now"));
  EXPECT_THAT(text, Not(HasSubstr("can't be restored")));
  EXPECT_THAT(host_.varve_ok({"where", "vm"}), HasSubstr("before: disk vda: "));
}

TEST_F(WhereTest, OneReasonForManySnapshotsIsSaidOnce) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  std::filesystem::remove(host_.image("vm.qcow2"));
  EXPECT_THAT(host_.varve_ok({"where", "vm"}),
              HasSubstr("\na, b: disk vda: " + host_.image("vm.qcow2") + " is not there: No such file or directory"));
}

TEST_F(WhereTest, ADiskOnTheNetworkIsNotSaidToBeMissing) {
  const std::string file =
      scratch_.write("network.xml",
                     "<domain type='qemu'><name>net</name><memory>65536</memory><os><type>hvm</type></os><devices>"
                     "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
                     "<source protocol='rbd' name='pool/image'><host name='mon'/></source><target dev='vda'/></disk>"
                     "</devices></domain>");
  host_.varve_ok({"vm", "define", file});
  const std::string text = host_.varve_ok({"where", "net"});
  EXPECT_THAT(text, HasSubstr("rbd:pool/image (raw), which is no file of this host"));
  EXPECT_THAT(text, Not(HasSubstr("MISSING")));
  EXPECT_TRUE(host_.varve_json({"where", "net"})["disks"][0]["image"]["exists"].is_null());
}

TEST_F(WhereTest, WithoutANameTheDomainsFilesAndSnapshotsAreListed) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"snapshot", "create", "vm", "b", "--disk", "vdb=no"});
  test::run_ok({"qemu-img", "snapshot", "-c", "stray", host_.image("vm-2.qcow2")});
  const json where = host_.varve_json({"where", "vm"});
  EXPECT_EQ(where["definition"]["host_path"], host_.definition("vm"));
  ASSERT_EQ(where["snapshots"].size(), 2u);
  EXPECT_THAT(where["snapshots"][0]["disks"], ElementsAre("vda", "vdb"));
  EXPECT_THAT(where["snapshots"][1]["disks"], ElementsAre("vda"));
  EXPECT_TRUE(where["snapshots"][1]["complete"]);
  EXPECT_THAT(where["unknown_points"], ElementsAre("disk vdb: stray (id 2)"));
}

TEST_F(WhereTest, LookingChangesNothing) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const auto before = host_.contents();
  host_.varve_ok({"where", "vm"});
  host_.varve_ok({"where", "vm", "a"});
  host_.varve_ok({"vm", "list"});
  host_.varve_ok({"vm", "show", "vm"});
  host_.varve_ok({"snapshot", "list", "vm", "--tree"});
  host_.varve_ok({"snapshot", "show", "vm", "a", "--xml"});
  EXPECT_EQ(host_.contents(), before);
}

}  // namespace
}  // namespace varve
