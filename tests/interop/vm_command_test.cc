// `varve vm` and `varve host`: domains made, defined, shown and removed.
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

class VmCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
  }
  json info(const std::string& file) const {
    return json::parse(test::run_ok({"qemu-img", "info", "--output=json", host_.image(file)}));
  }
  unsigned mode_of(const std::string& path) const {
    return static_cast<unsigned>(std::filesystem::status(path).permissions());
  }

  test::HostDirectory host_;
  test::TempDir scratch_;
};

TEST_F(VmCommandTest, CreateMakesTheHostTheImagesAndTheDefinition) {
  host_.varve_ok({"vm", "create", "vm", "--disk", "1G", "--disk", "2G,format=raw", "--disk",
                  "3G,cluster_size=4k,path=/var/lib/libvirt/images/data.qcow2", "--memory", "512M", "--vcpus", "2"});
  EXPECT_EQ(info("vm.qcow2")["virtual-size"], uint64_t{1} << 30);
  EXPECT_EQ(info("vm-2.img")["format"], "raw");
  EXPECT_EQ(info("data.qcow2")["cluster-size"], 4096);
  host_.expect_clean("data.qcow2");
  const json shown = host_.varve_json({"vm", "show", "vm"});
  EXPECT_EQ(shown["memory_bytes"], 512 << 20);
  EXPECT_EQ(shown["vcpus"], 2);
  EXPECT_EQ(shown["disks"][2]["source"], "/var/lib/libvirt/images/data.qcow2");
  EXPECT_EQ(shown["disks"][1]["format"], "raw");
  // As libvirt makes them.
  EXPECT_EQ(mode_of(host_.definition("vm")), 0600u);
  EXPECT_EQ(mode_of(host_.image("")), 0711u);
  EXPECT_EQ(mode_of(host_.image("vm.qcow2")), 0600u);
}

TEST_F(VmCommandTest, CreateTakesAnImageThatIsThere) {
  host_.make_domain("first", 1);
  host_.varve_ok({"vm", "create", "second", "--disk", "/var/lib/libvirt/images/first.qcow2"});
  EXPECT_EQ(host_.varve_json({"vm", "show", "second"})["disks"][0]["source"], "/var/lib/libvirt/images/first.qcow2");
}

TEST_F(VmCommandTest, CreateOverwritesNothing) {
  host_.make_domain("vm", 1);
  const auto before = host_.contents();
  const auto again = host_.varve({"vm", "create", "vm", "--disk", "1G"});
  EXPECT_EQ(again.exit_code, 3);
  EXPECT_THAT(again.err, HasSubstr("domain 'vm' is not created"));
  const auto taken =
      host_.varve({"vm", "create", "vm2", "--disk", "1G", "--disk", "1G,path=/var/lib/libvirt/images/vm.qcow2"});
  EXPECT_EQ(taken.exit_code, 3);
  EXPECT_THAT(taken.err, HasSubstr("there is an image"));
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VmCommandTest, ListShowsEveryDomain) {
  EXPECT_EQ(host_.varve({"vm", "list"}).exit_code, 4);  // no host yet
  host_.make_domain("b", 1);
  host_.make_domain("a", 2);
  host_.varve_ok({"snapshot", "create", "a", "s"});
  const json list = host_.varve_json({"vm", "list"});
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["name"], "a");
  EXPECT_EQ(list[0]["disks"], 2);
  EXPECT_EQ(list[0]["snapshots"], 1);
  EXPECT_EQ(list[0]["current"], "s");
  EXPECT_TRUE(list[1]["current"].is_null());
  EXPECT_THAT(host_.varve_ok({"vm", "list"}), HasSubstr("\n a      shut off   2       1           s\n"));
}

TEST_F(VmCommandTest, DefineKeepsTheUuidOfADomainThatItChanges) {
  host_.make_domain("vm", 1);
  const std::string uuid = host_.varve_json({"vm", "show", "vm"})["uuid"];
  std::string xml = host_.varve_ok({"vm", "show", "vm", "--xml"});
  xml.replace(xml.find("  <uuid>"), xml.find("</uuid>") + 8 - xml.find("  <uuid>"), "  <title>mine</title>\n");
  host_.varve_ok({"vm", "define", scratch_.write("vm.xml", xml)});
  const json shown = host_.varve_json({"vm", "show", "vm"});
  EXPECT_EQ(shown["title"], "mine");
  EXPECT_EQ(shown["uuid"], uuid);
}

TEST_F(VmCommandTest, DefineRefusesAUuidThatAnotherDomainHas) {
  host_.make_domain("vm", 1);
  std::string xml = host_.varve_ok({"vm", "show", "vm", "--xml"});
  xml.replace(xml.find("<name>vm<"), 9, "<name>other<");
  const auto before = host_.contents();
  const auto refused = host_.varve({"vm", "define", scratch_.write("other.xml", xml)});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("domain 'vm' has the UUID"));
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VmCommandTest, DefineSaysHowToBringInADiskThatIsOutsideOfTheHost) {
  const std::string outside = scratch_ / "outside.qcow2";
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", outside, "1M"});
  host_.make_domain("vm", 1);
  std::string xml = host_.varve_ok({"vm", "show", "vm", "--xml"});
  const std::string inside = "/var/lib/libvirt/images/vm.qcow2";
  xml.replace(xml.find(inside), inside.size(), outside);
  const auto refused = host_.varve({"vm", "define", scratch_.write("vm.xml", xml)});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("disk vda is " + outside + ", which is outside of " + host_.root()));
  EXPECT_THAT(refused.err, HasSubstr("`cp --sparse=always"));
}

TEST_F(VmCommandTest, UndefineRefusesWhileThereAreSnapshotsAndNamesThem) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  const auto before = host_.contents();
  const auto refused = host_.varve({"vm", "undefine", "vm"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("it has 2 snapshots: a, b"));
  EXPECT_THAT(refused.err, HasSubstr("--snapshots"));
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VmCommandTest, UndefineWithSnapshotsLeavesNoOrphansInTheImages) {
  host_.make_domain("vm");
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"vm", "undefine", "vm", "--snapshots"});
  EXPECT_FALSE(std::filesystem::exists(host_.definition("vm")));
  EXPECT_FALSE(std::filesystem::exists(host_.root() + "/var/lib/libvirt/qemu/snapshot/vm"));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    EXPECT_THAT(host_.points(file), IsEmpty());
    host_.expect_clean(file);
  }
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

TEST_F(VmCommandTest, UndefineWithStorageRemovesTheDisksThatNobodyElseUses) {
  host_.make_domain("vm");
  host_.varve_ok({"vm", "create", "other", "--disk", "/var/lib/libvirt/images/vm-2.qcow2"});
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const auto done = host_.varve({"vm", "undefine", "vm", "--snapshots", "--storage"});
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_THAT(done.err, HasSubstr("vm-2.qcow2 stays, domain 'other' uses it"));
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm.qcow2")));
  EXPECT_THAT(host_.points("vm-2.qcow2"), IsEmpty());
  EXPECT_THAT(host_.varve_json({"vm", "list"})[0]["name"], "other");
}

TEST_F(VmCommandTest, UndefineWithStorageKeepsWhatOtherDomainsHaveAsBackingFile) {
  host_.make_domain("vm", 1);
  const auto overlay = [&](const std::string& file, const std::string& below) {
    test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", host_.image(file)});
  };
  overlay("middle.qcow2", "vm.qcow2");
  overlay("top.qcow2", "middle.qcow2");
  host_.varve_ok({"vm", "create", "other", "--disk", "/var/lib/libvirt/images/top.qcow2"});
  // Also while the other one runs.
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("top.qcow2")});
  user.write("write 0 64k\n");
  ASSERT_TRUE(user.wait_for("wrote 65536"));
  const auto done = host_.varve({"vm", "undefine", "vm", "--storage"});
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_THAT(done.err, HasSubstr("vm.qcow2 stays, domain 'other' needs it as a backing file"));
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm.qcow2")));
}

TEST_F(VmCommandTest, UndefineWithStorageRefusesWhileItCannotTellWhatOthersNeed) {
  host_.make_domain("vm", 1);
  host_.make_domain("other", 1);
  std::filesystem::resize_file(host_.definition("other"), 500);
  const auto before = host_.contents();
  const auto refused = host_.varve({"vm", "undefine", "vm", "--storage"});
  EXPECT_EQ(refused.exit_code, 3) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("other.xml"));
  EXPECT_THAT(refused.err, HasSubstr("without `--storage`"));
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VmCommandTest, UndefineWithStorageRefusesWhileADiskIsInUse) {
  host_.make_domain("vm");
  const auto before = host_.contents();
  test::BackgroundProcess user({"qemu-io", "-r", "-f", "qcow2", host_.image("vm-2.qcow2")});
  user.write("read 0 64k\n");
  ASSERT_TRUE(user.wait_for("read 65536"));
  const auto refused = host_.varve({"vm", "undefine", "vm", "--storage"});
  EXPECT_EQ(refused.exit_code, 5) << refused.err;
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VmCommandTest, HostSaysWhichAndWhy) {
  const auto missing = host_.varve({"host"});
  EXPECT_EQ(missing.exit_code, 0);
  EXPECT_THAT(missing.out, HasSubstr("does not exist yet"));
  host_.make_domain("vm", 1);
  const json host = host_.varve_json({"host"});
  EXPECT_EQ(host["uri"], "dir:" + host_.root());
  EXPECT_EQ(host["reason"], "because -c says so");
  EXPECT_EQ(host["domains"], 1);
  EXPECT_TRUE(host["writable"]);

  test::RunOptions options;
  options.environment = {{"VARVE_URI", "qemu:///system"}};
  const auto libvirt = test::run({VARVE_COMMAND, "host"}, options);
  EXPECT_EQ(libvirt.exit_code, 0);
  EXPECT_THAT(libvirt.out, HasSubstr("because $VARVE_URI says so"));
  const auto refused = test::run({VARVE_COMMAND, "vm", "list"}, options);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("qemu:///system can't be reached"));
}

}  // namespace
}  // namespace varve
