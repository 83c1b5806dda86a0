// A machine goes from a real libvirtd to a drive and back, and is there what it was; its images move to another
// directory, and libvirt's documents follow. What virt-manager calls storage is told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/libvirt_domain.h"
#include "support/image_bytes.h"

namespace varve {
namespace {

using nlohmann::json;
using test::HostDirectory;
using test::ProcessResult;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class LibvirtTransferTest : public test::LibvirtDomain {
 protected:
  void SetUp() override {
    LibvirtDomain::SetUp();
    if (!libvirtd_) return;
    host_.fill("vm.qcow2", 1);
    virsh({"snapshot-create-as", "vm", "first", "von virsh & \"Co\""});
    host_.fill("vm.qcow2", 2);
    varve_ok({"snapshot", "create", "vm", "zweiter Stand ä"});
    host_.fill("vm.qcow2", 3);
  }
  // As libvirtd's mounts see it: its own directories are the host's, everything else is the machine's.
  std::string drive() const { return directory_ / "drive"; }

  void expect_whole() const {
    EXPECT_THAT(snapshots(), ElementsAre("first", "zweiter Stand ä"));
    EXPECT_EQ(current(), "zweiter Stand ä");
    EXPECT_EQ(names({"snapshot-parent", "vm", "zweiter Stand ä"}).at(0), "first");
    expect_sound();
    expect_points({"first", "zweiter Stand ä"});
    EXPECT_TRUE(host_.is_filled("vm.qcow2", 3));
    virsh({"snapshot-revert", "vm", "first"});
    EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  }

  test::TempDir directory_;
};

TEST_F(LibvirtTransferTest, FromLibvirtToADriveAndBack) {
  const std::string definition = virsh({"dumpxml", "vm", "--inactive"});
  const std::string first = virsh({"snapshot-dumpxml", "vm", "first"});
  varve_ok({"vm", "move", "vm", "--to", "dir:" + drive()});
  EXPECT_THAT(names({"list", "--all", "--name"}), IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm.qcow2")));
  const HostDirectory there(drive());
  EXPECT_EQ(there.varve_json({"verify", "vm"})["status"], "ok");
  EXPECT_TRUE(there.is_filled("vm.qcow2", 3));
  there.varve_ok({"vm", "export", "vm", directory_ / "export"});

  varve_ok({"vm", "import", directory_ / "export"});
  EXPECT_EQ(virsh({"dumpxml", "vm", "--inactive"}), definition);
  EXPECT_EQ(virsh({"snapshot-dumpxml", "vm", "first"}), first);
  expect_whole();
}

TEST_F(LibvirtTransferTest, ImagesMoveAndLibvirtFollows) {
  std::filesystem::create_directories(host_.root() + "/var/lib/libvirt/images/schnell & neu");
  varve_ok({"vm", "move", "vm", "--to", "/var/lib/libvirt/images/schnell & neu"});
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm.qcow2")));
  EXPECT_THAT(virsh({"domblklist", "vm"}), HasSubstr("/var/lib/libvirt/images/schnell & neu/vm.qcow2"));
  EXPECT_THAT(virsh({"snapshot-dumpxml", "vm", "first"}), Not(HasSubstr("images/vm.qcow2")));
  EXPECT_THAT(snapshots(), ElementsAre("first", "zweiter Stand ä"));
  EXPECT_EQ(current(), "zweiter Stand ä");
  expect_sound();
  virsh({"snapshot-revert", "vm", "first"});
  EXPECT_TRUE(host_.is_filled("schnell & neu/vm.qcow2", 1));
  virsh({"snapshot-delete", "vm", "zweiter Stand ä"});
  EXPECT_THAT(host_.points("schnell & neu/vm.qcow2"), ElementsAre("first"));
}

TEST_F(LibvirtTransferTest, TheStateOfATpmGoesAlong) {
  REQUIRES_PROGRAM("swtpm");
  REQUIRES_PROGRAM("swtpm_setup");
  // Where swtpm's own certificates are, as its package makes it.
  const std::string certificates = host_.root() + "/var/lib/swtpm-localca";
  std::filesystem::create_directories(certificates);
  test::run_ok({"chown", "tss", certificates});
  std::string xml = virsh({"dumpxml", "vm", "--inactive"});
  xml.replace(xml.find("</devices>"), 0, "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>");
  virsh({"define", directory_.write("vm.xml", xml)});
  virsh({"start", "vm"});  // its swtpm is made now
  virsh({"destroy", "vm"});
  const std::string uuid = names({"domuuid", "vm"}).at(0);
  const std::string state = host_.root() + "/var/lib/libvirt/swtpm/" + uuid + "/tpm2/tpm2-00.permall";
  const std::string before = test::read_whole_file(state);
  ASSERT_FALSE(before.empty());

  varve_ok({"vm", "move", "vm", "--to", "dir:" + drive()});
  EXPECT_FALSE(std::filesystem::exists(state));
  EXPECT_TRUE(test::read_whole_file(drive() + "/var/lib/libvirt/swtpm/" + uuid + "/tpm2/tpm2-00.permall") == before);
  test::run_ok({VARVE_COMMAND, "-q", "-c", "dir:" + drive(), "vm", "export", "vm", directory_ / "export"});
  varve_ok({"vm", "import", directory_ / "export"});
  EXPECT_TRUE(test::read_whole_file(state) == before);
  virsh({"start", "vm"});  // swtpm takes it
  EXPECT_THAT(names({"domstate", "vm"}), Contains("running"));
  virsh({"destroy", "vm"});
  expect_whole();
}

TEST_F(LibvirtTransferTest, ARunningMachineStays) {
  virsh({"start", "vm"});
  const ProcessResult result = varve({"vm", "move", "vm", "--to", "dir:" + drive()});
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, HasSubstr("it is running"));
  EXPECT_THAT(result.err, HasSubstr("nothing was changed"));
  virsh({"destroy", "vm"});
  virsh({"managedsave-remove", "vm"});
}

TEST_F(LibvirtTransferTest, StoragePoolsAndVolumesAreTold) {
  virsh({"pool-define-as", "die Platten", "dir", "--target", "/var/lib/libvirt/images"});
  virsh({"pool-start", "die Platten"});
  const json where = varve_json({"where", "vm"});
  EXPECT_EQ(where["disks"][0]["image"]["volume"]["pool"], "die Platten") << where.dump(2);
  EXPECT_EQ(where["disks"][0]["image"]["volume"]["name"], "vm.qcow2");
  EXPECT_THAT(varve_ok({"where", "vm", "first"}),
              HasSubstr("/var/lib/libvirt/images/vm.qcow2  [pool 'die Platten', volume 'vm.qcow2']"));
  std::string xml = virsh({"dumpxml", "vm", "--inactive"});
  const std::string file = "<disk type='file' device='disk'>";
  xml.replace(xml.find(file), file.size(), "<disk type='volume' device='disk'>");
  const std::string source = "<source file='/var/lib/libvirt/images/vm.qcow2'/>";
  ASSERT_NE(xml.find(source), std::string::npos);
  xml.replace(xml.find(source), source.size(), "<source pool='die Platten' volume='vm.qcow2'/>");
  virsh({"define", directory_.write("vm.xml", xml)});
  EXPECT_EQ(varve_json({"where", "vm"})["disks"][0]["image"]["host_path"], "/var/lib/libvirt/images/vm.qcow2");
}

}  // namespace
}  // namespace varve
