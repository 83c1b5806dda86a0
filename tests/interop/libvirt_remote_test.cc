// A libvirtd that is reached by a way which may lead to another machine: through a program, as qemu+ssh:// does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/libvirt_domain.h"

namespace varve {
namespace {

using test::ProcessResult;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class LibvirtRemoteTest : public test::LibvirtDomain {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("virt-ssh-helper");
    LibvirtDomain::SetUp();
    if (!libvirtd_) return;
    // What ssh would start over there.
    const std::string way = directory_ / "way";
    directory_.write("way", "#!/bin/sh\nexec virt-ssh-helper qemu:///system\n");
    std::filesystem::permissions(way, std::filesystem::perms::owner_all);
    uri_ = "qemu+ext://elsewhere/system?command=" + way;
  }
  ProcessResult from_afar(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"env", "XDG_STATE_HOME=" + directory_.path(), VARVE_COMMAND, "-c", uri_});
    return libvirtd_->run_there(std::move(arguments));
  }
  std::string from_afar_ok(const std::vector<std::string>& arguments) const {
    const ProcessResult result = from_afar(arguments);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.out << result.err;
    EXPECT_THAT(result.err, IsEmpty());
    return result.out;
  }

  test::TempDir directory_;
  std::string uri_;
};

TEST_F(LibvirtRemoteTest, WhatIsThereIsShown) {
  varve_ok({"snapshot", "create", "vm", "first"});
  EXPECT_THAT(from_afar_ok({"vm", "list"}), HasSubstr("vm     shut off   2       1           first"));
  EXPECT_THAT(from_afar_ok({"snapshot", "list", "vm"}), HasSubstr("first"));
  EXPECT_THAT(from_afar_ok({"snapshot", "show", "vm", "first"}), HasSubstr("vda=internal, vdb=internal"));
  EXPECT_EQ(from_afar({"snapshot", "show", "vm", "second"}).exit_code, 4);
}

// libvirtd works on the images there; that this very machine has files of their names means nothing.
TEST_F(LibvirtRemoteTest, SnapshotsAreLibvirtdsWork) {
  from_afar_ok({"snapshot", "create", "vm", "first"});
  EXPECT_THAT(from_afar_ok({"--dry-run", "snapshot", "create", "vm", "second"}), HasSubstr("have libvirtd take"));
  from_afar_ok({"snapshot", "create", "vm", "second"});
  expect_points({"first", "second"});
  from_afar_ok({"snapshot", "revert", "vm", "first", "--no-safety"});
  EXPECT_EQ(current(), "first");
  from_afar_ok({"snapshot", "delete", "vm", "second"});
  expect_points({"first"});
  EXPECT_THAT(snapshots(), ElementsAre("first"));
  virsh({"start", "vm"});
  from_afar_ok({"snapshot", "create", "vm", "running"});
  EXPECT_THAT(snapshots(), Contains("running"));
}

TEST_F(LibvirtRemoteTest, WhatNeedsTheImagesHereIsRefused) {
  varve_ok({"snapshot", "create", "vm", "first"});
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"verify", "vm"},
                                             {"vm", "recover", "vm"},
                                             {"vm", "undefine", "vm", "--snapshots"},
                                             {"snapshot", "edit", "vm", "first", "--name", "other"},
                                             {"vm", "create", "new", "--disk", "1G"}}) {
    const ProcessResult result = from_afar(command);
    EXPECT_NE(result.exit_code, 0) << command[1];
    EXPECT_THAT(result.out + result.err, HasSubstr("another machine")) << command[0] << " " << command[1];
    EXPECT_THAT(result.out + result.err, HasSubstr("ssh HOST varve")) << command[0] << " " << command[1];
  }
  expect_points({"first"});
}

TEST_F(LibvirtRemoteTest, AWayThatLeadsNowhereIsSaid) {
  directory_.write("way", "#!/bin/sh\necho 'no such host' >&2\nexit 255\n");
  const ProcessResult result = from_afar({"vm", "list"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("can't be reached"));
}

}  // namespace
}  // namespace varve
