// The varve command on running machines of a real libvirtd, and on what else only libvirtd can do: real QEMUs, with
// nothing but their firmware in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "interop/libvirt_domain.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class LibvirtMachinesTest : public test::LibvirtDomain {
 protected:
  std::string state() const { return names({"domstate", "vm"}).at(0); }
  // What QEMU itself does with a disk of the running guest, and says of it in its log.
  std::string in_guest(const std::string& target, const std::string& command) const {
    const std::string device = fmt::format("/machine/peripheral/virtio-disk{}/virtio-backend", target.back() - 'a');
    const auto log = [&] { return libvirtd_->run_there({"cat", "/var/log/libvirt/qemu/vm.log"}).out; };
    const size_t before = log().size();
    virsh({"qemu-monitor-command", "vm", "--hmp", fmt::format("qemu-io -d {} \"{}\"", device, command)});
    return log().substr(before);
  }
  void write_in_guest(const std::string& target, int byte) const {
    EXPECT_THAT(in_guest(target, fmt::format("write -P {} 0 1M", byte)), HasSubstr("wrote 1048576/1048576"));
  }
  bool holds_in_guest(const std::string& target, int byte) const {
    const std::string out = in_guest(target, fmt::format("read -P {} 0 1M", byte));
    EXPECT_THAT(out, HasSubstr("read 1048576/1048576"));
    return out.find("verification failed") == std::string::npos;
  }

  test::TempDir scratch_;
};

TEST_F(LibvirtMachinesTest, ARunningMachineIsTakenWithItsMemoryAndBack) {
  virsh({"start", "vm"});
  write_in_guest("vda", 1);
  varve_ok({"snapshot", "create", "vm", "first", "--description", "while it runs"});
  EXPECT_EQ(state(), "running");
  EXPECT_EQ(current(), "first");
  const json shown = varve_json({"snapshot", "show", "vm", "first"});
  EXPECT_EQ(shown["state"], "running");
  EXPECT_EQ(shown["description"], "while it runs");
  write_in_guest("vda", 2);

  const std::string safety = varve_json({"snapshot", "revert", "vm", "first"})["safety"];
  EXPECT_TRUE(holds_in_guest("vda", 1));
  EXPECT_EQ(current(), "first");
  EXPECT_THAT(snapshots(), UnorderedElementsAre("first", safety));
  EXPECT_EQ(varve_json({"snapshot", "show", "vm", safety})["safety"], true);

  // What was thrown away is still there, and the next revert replaces what this one kept.
  const std::string second = varve_json({"snapshot", "revert", "vm", safety})["safety"];
  EXPECT_TRUE(holds_in_guest("vda", 2));
  varve_ok({"snapshot", "revert", "vm", "first", "--paused"});
  EXPECT_EQ(state(), "paused");
  EXPECT_THAT(snapshots(), testing::Not(Contains(second)));

  varve_ok({"snapshot", "delete", "vm", "first", "--children"});
  EXPECT_THAT(snapshots(), IsEmpty());
  virsh({"destroy", "vm"});
  expect_points({});
  expect_sound();
}

TEST_F(LibvirtMachinesTest, AMachineThatIsOffGoesBackToWhenItRan) {
  virsh({"start", "vm"});
  write_in_guest("vdb", 7);
  varve_ok({"snapshot", "create", "vm", "first"});
  virsh({"destroy", "vm"});
  varve_ok({"snapshot", "revert", "vm", "first"});
  EXPECT_EQ(state(), "running");
  EXPECT_TRUE(holds_in_guest("vdb", 7));
  // Its disks alone, as after a power cut, can be had without it.
  virsh({"destroy", "vm"});
  varve_ok({"snapshot", "revert", "vm", "first", "--disk", "vda"});
  EXPECT_EQ(state(), "shut off");
}

TEST_F(LibvirtMachinesTest, AShutOffSnapshotCanRunAfterwards) {
  varve_ok({"snapshot", "create", "vm", "first"});
  varve_ok({"snapshot", "revert", "vm", "first", "--running"});
  EXPECT_EQ(state(), "running");
}

TEST_F(LibvirtMachinesTest, ExternalFilesOfARunningMachine) {
  virsh({"start", "vm"});
  varve_ok({"snapshot", "create", "vm", "disks", "--disk-only"});
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm.disks")));
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm-2.disks")));
  varve_ok({"snapshot", "create", "vm", "all", "--mode", "external", "--live"});
  EXPECT_TRUE(std::filesystem::exists(host_.root() + "/var/lib/libvirt/qemu/save/vm.all.mem"));
  const json all = varve_json({"snapshot", "show", "vm", "all"});
  EXPECT_EQ(all["location"], "external");
  EXPECT_EQ(all["parent"], "disks");
  EXPECT_EQ(varve_json({"where", "vm", "all"})["memory"]["exists"], true);

  const test::ProcessResult again = varve({"snapshot", "create", "vm", "all", "--disk-only"});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("there is a snapshot of that name"));

  // Going back is not possible with this libvirt, and nothing is tried.
  const test::ProcessResult back = varve({"snapshot", "revert", "vm", "disks"});
  EXPECT_EQ(back.exit_code, 3);
  EXPECT_THAT(back.err, HasSubstr("possible from libvirt 9.9.0 on, and this is 9.0.0"));
  EXPECT_THAT(snapshots(), ElementsAre("all", "disks"));

  EXPECT_THAT(varve_ok({"--dry-run", "snapshot", "delete", "vm", "all"}), HasSubstr("vm.all.mem"));
  varve_ok({"snapshot", "delete", "vm", "all"});
  EXPECT_THAT(snapshots(), ElementsAre("disks"));
  EXPECT_FALSE(std::filesystem::exists(host_.root() + "/var/lib/libvirt/qemu/save/vm.all.mem"));
}

TEST_F(LibvirtMachinesTest, ADiskIsLeftOut) {
  virsh({"start", "vm"});
  varve_ok({"snapshot", "create", "vm", "part", "--disk-only", "--disk", "vdb=no"});
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm.part")));
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm-2.part")));
}

TEST_F(LibvirtMachinesTest, WhatCannotBeIsSaidBeforeAnythingIsTried) {
  const auto refused = [&](const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"snapshot", "create", "vm", "x"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const test::ProcessResult result = varve(command);
    EXPECT_EQ(result.exit_code, 3) << result.out;
    EXPECT_THAT(result.err, HasSubstr("snapshot 'x' of 'vm' is not created"));
    EXPECT_THAT(result.err, HasSubstr("nothing was changed"));
    return result.err;
  };
  EXPECT_THAT(refused({"--memory"}), HasSubstr("shut off: there is no memory to keep"));
  EXPECT_THAT(refused({"--quiesce", "--disk-only"}), HasSubstr("a running guest"));
  EXPECT_THAT(refused({"--disk", "vda=external"}), HasSubstr("disk vdb would be kept as 'internal' and disk vda as"));
  virsh({"start", "vm"});
  EXPECT_THAT(refused({"--live"}), HasSubstr("--mode external"));
  EXPECT_THAT(refused({"--quiesce"}), HasSubstr("--disk-only"));
  EXPECT_THAT(refused({"--disk", "vdc=no"}), HasSubstr("there is no disk vdc"));
  EXPECT_THAT(refused({"--disk", "vda=external"}), HasSubstr("libvirt mixes them not"));
  EXPECT_THAT(refused({"--disk", "vdb=no"}), HasSubstr("disk vdb can't be left out"));
  EXPECT_THAT(refused({"--disk-only", "--disk", "vda=internal"}), HasSubstr("without the memory"));
  // No guest agent is there: libvirt says so, and the snapshot is not half made.
  const test::ProcessResult quiesce = varve({"snapshot", "create", "vm", "x", "--disk-only", "--quiesce"});
  EXPECT_EQ(quiesce.exit_code, 1);
  EXPECT_THAT(quiesce.err, HasSubstr("guest agent"));
  EXPECT_THAT(snapshots(), IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm.x")));
}

TEST_F(LibvirtMachinesTest, ARawDiskOfARunningMachine) {
  virsh({"undefine", "vm"});
  varve_ok({"vm", "create", "raw", "--type", "qemu", "--disk", "16M,format=raw"});
  virsh({"start", "raw"});
  const test::ProcessResult refused = varve({"snapshot", "create", "raw", "x"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("disk vda is raw"));
  EXPECT_THAT(refused.err, HasSubstr("--disk-only"));
  varve_ok({"snapshot", "create", "raw", "x", "--disk-only"});
}

TEST_F(LibvirtMachinesTest, ADryRunOfARunningMachineDoesNothing) {
  virsh({"start", "vm"});
  const std::string plan = varve_ok({"--dry-run", "snapshot", "create", "vm", "x"});
  EXPECT_THAT(plan, HasSubstr("have libvirtd take a snapshot of 'vm' (running)"));
  EXPECT_THAT(snapshots(), IsEmpty());
}

TEST_F(LibvirtMachinesTest, TheDescriptionOfARunningMachinesSnapshotChanges) {
  virsh({"start", "vm"});
  varve_ok({"snapshot", "create", "vm", "first"});
  varve_ok({"snapshot", "edit", "vm", "first", "--description", "new"});
  EXPECT_EQ(varve_json({"snapshot", "show", "vm", "first"})["description"], "new");
  // Its name is in the image, too, which QEMU has.
  const test::ProcessResult rename = varve({"snapshot", "edit", "vm", "first", "--name", "other"});
  EXPECT_EQ(rename.exit_code, 5);
  EXPECT_EQ(current(), "first");
}

// libvirt would let it go, and lose the metadata of its snapshots when it stops.
TEST_F(LibvirtMachinesTest, ARunningMachineIsNotUndefined) {
  varve_ok({"snapshot", "create", "vm", "first"});
  virsh({"start", "vm"});
  const test::ProcessResult refused = varve({"vm", "undefine", "vm", "--snapshots"});
  EXPECT_EQ(refused.exit_code, 5);
  EXPECT_THAT(refused.err, HasSubstr("it is running"));
  EXPECT_THAT(snapshots(), ElementsAre("first"));
}

TEST_F(LibvirtMachinesTest, BesideCheckpointsNothingIsDone) {
  varve_ok({"snapshot", "create", "vm", "first"});
  virsh({"start", "vm"});
  virsh({"checkpoint-create-as", "vm", "backup"});
  EXPECT_THAT(varve({"snapshot", "create", "vm", "second"}).err, HasSubstr("checkpoint"));
  virsh({"destroy", "vm"});
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"snapshot", "create", "vm", "second"},
                                                    {"snapshot", "revert", "vm", "first"},
                                                    {"vm", "undefine", "vm", "--snapshots"}}) {
    const test::ProcessResult refused = varve(arguments);
    EXPECT_EQ(refused.exit_code, 3) << arguments.back();
    EXPECT_THAT(refused.err, HasSubstr("checkpoint-list"));
  }
}

// Whom libvirt's socket lets in, but not the images: libvirtd does the work.
TEST_F(LibvirtMachinesTest, WhoMayNotOpenTheImagesHasLibvirtdDoIt) {
  REQUIRES_PROGRAM("setpriv");
  // As for members of the group `libvirt` on Debian.
  libvirtd_->stop();
  ASSERT_TRUE(replace_file(host_.root() + "/etc/libvirt/libvirtd.conf",
                           "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0777\"\n", {}));
  libvirtd_->restart();
  EXPECT_EQ(libvirtd_->run_there({"sh", "-c", "cp " VARVE_COMMAND " /run/varve && mkdir -m 777 /run/home"}).exit_code,
            0);
  const auto as_user = [&](const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"setpriv",        "--reuid=65534", "--regid=65534",
                                        "--clear-groups", "env",           "XDG_STATE_HOME=/run/home",
                                        "HOME=/run/home", "/run/varve",    "-c",
                                        "qemu:///system"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return libvirtd_->run_there(std::move(command));
  };
  const test::ProcessResult plan = as_user({"--dry-run", "snapshot", "create", "vm", "first"});
  EXPECT_THAT(plan.out, HasSubstr("have libvirtd take a snapshot of 'vm' (shut off)")) << plan.err;
  const test::ProcessResult made = as_user({"snapshot", "create", "vm", "first"});
  EXPECT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(snapshots(), ElementsAre("first"));
  expect_points({"first"});
  const test::ProcessResult back = as_user({"snapshot", "revert", "vm", "first", "--no-safety"});
  EXPECT_EQ(back.exit_code, 0) << back.err;
  const test::ProcessResult gone = as_user({"snapshot", "delete", "vm", "first"});
  EXPECT_EQ(gone.exit_code, 0) << gone.err;
  expect_points({});
}

// libvirt would point the disk at the base, and the next write there would make rubbish of the overlay.
TEST_F(LibvirtMachinesTest, ASnapshotBelowAnOverlayIsNotRevertedTo) {
  virsh({"start", "vm"});
  varve_ok({"snapshot", "create", "vm", "inside"});
  varve_ok({"snapshot", "create", "vm", "outside", "--disk-only"});
  const test::ProcessResult running = varve({"snapshot", "revert", "vm", "inside", "--no-safety"});
  EXPECT_EQ(running.exit_code, 3);
  EXPECT_THAT(running.err, HasSubstr("is /var/lib/libvirt/images/vm.outside today"));
  virsh({"destroy", "vm"});
  EXPECT_EQ(varve({"snapshot", "revert", "vm", "inside"}).exit_code, 3);
}

TEST_F(LibvirtMachinesTest, TwoDisksDoNotGetOneOverlay) {
  varve_ok({"vm", "create", "twins", "--type", "qemu", "--disk", "16M,path=/var/lib/libvirt/images/twin.qcow2",
            "--disk", "16M,path=/var/lib/libvirt/images/twin.img"});
  const test::ProcessResult refused = varve({"snapshot", "create", "twins", "x", "--mode", "external"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("the same file"));
}

// Only its firmware runs.
TEST_F(LibvirtMachinesTest, WhatItsMemoryCannotBeSavedWithIsSaid) {
  const auto define = [&](const std::string& name, const std::string& os, const std::string& devices) {
    scratch_.write(name, fmt::format(R"(
<domain type='qemu'>
  <name>{0}</name>
  <memory unit='MiB'>128</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os{1}><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/{0}.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    {2}
  </devices>
</domain>)",
                                     name, os, devices));
    test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", host_.image(name + ".qcow2"), "16M"});
    virsh({"define", scratch_ / name});
    virsh({"start", name});
  };
  define("uefi", " firmware='efi'", "");
  const test::ProcessResult uefi = varve({"snapshot", "create", "uefi", "x"});
  EXPECT_EQ(uefi.exit_code, 3);
  EXPECT_THAT(uefi.err, HasSubstr("its UEFI firmware keeps its variables in a raw file"));
  EXPECT_THAT(uefi.err, HasSubstr("`--mode external`"));
  varve_ok({"snapshot", "create", "uefi", "x", "--mode", "external"});
  varve_ok({"snapshot", "create", "uefi", "y", "--disk-only"});

  define("shares", "",
         "<filesystem type='mount'><driver type='virtiofs'/><source dir='/var/lib/libvirt/images'/>"
         "<target dir='it'/></filesystem>");
  const test::ProcessResult shares = varve({"snapshot", "create", "shares", "x"});
  EXPECT_EQ(shares.exit_code, 3);
  EXPECT_THAT(shares.err, HasSubstr("it has a virtiofs file system"));
  varve_ok({"snapshot", "create", "shares", "x", "--disk-only"});
}

}  // namespace
}  // namespace varve
