// What the commands do to real images and documents, seen by QEMU's own tools.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "host/directory_host.h"
#include "interop/host_directory.h"
#include "operation/create_snapshot.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;
using testing::UnorderedElementsAre;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class OperationsTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
  }

  std::vector<std::string> names(const std::string& domain) const {
    std::vector<std::string> result;
    for (const json& snapshot : host_.varve_json({"snapshot", "list", domain})) result.push_back(snapshot["name"]);
    return result;
  }
  std::string current(const std::string& domain) const {
    for (const json& snapshot : host_.varve_json({"snapshot", "list", domain})) {
      if (snapshot["current"]) return snapshot["name"];
    }
    return "";
  }
  std::string parent(const std::string& domain, const std::string& snapshot) const {
    const json found = host_.varve_json({"snapshot", "show", domain, snapshot});
    return found["parent"].is_null() ? "" : found["parent"].get<std::string>();
  }
  void replace_in_definition(const std::string& domain, const std::string& from, const std::string& to) const {
    std::string text = test::read_whole_file(host_.definition(domain));
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " is not in\n" << text;
    text.replace(at, from.size(), to);
    std::ofstream(host_.definition(domain), std::ios::trunc) << text;
  }

  test::HostDirectory host_;
  test::TempDir scratch_;
};

TEST_F(OperationsTest, RevertBringsBackTheContentsOfEveryDisk) {
  host_.make_domain("vm");
  host_.fill("vm.qcow2", 1);
  host_.fill("vm-2.qcow2", 2);
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  host_.fill("vm.qcow2", 3);
  host_.fill("vm-2.qcow2", 4, 2, 20);
  host_.varve_ok({"snapshot", "revert", "vm", "before"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_TRUE(host_.is_filled("vm-2.qcow2", 2));
  EXPECT_TRUE(host_.is_filled("vm-2.qcow2", 0, 8, 14));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) host_.expect_clean(file);
  EXPECT_EQ(current("vm"), "before");
}

TEST_F(OperationsTest, RevertRestoresTheDefinitionOfThatTime) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "before"});
  const std::string then = host_.varve_ok({"vm", "show", "vm", "--xml"});
  replace_in_definition("vm", "1</vcpu>", "7</vcpu>");
  ASSERT_NE(host_.varve_ok({"vm", "show", "vm", "--xml"}), then);
  host_.varve_ok({"snapshot", "revert", "vm", "before"});
  EXPECT_EQ(host_.varve_ok({"vm", "show", "vm", "--xml"}), then);
}

TEST_F(OperationsTest, RevertKeepsWhatItThrowsAwayUntilTheNextRevert) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "empty"});
  host_.fill("vm.qcow2", 5);
  replace_in_definition("vm", "1</vcpu>", "7</vcpu>");
  const json first = host_.varve_json({"snapshot", "revert", "vm", "empty"});
  const std::string safety = first["safety"];
  EXPECT_THAT(safety, StartsWith("varve-safety-"));
  EXPECT_EQ(parent("vm", safety), "empty");
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 0));

  // Going back to it undoes the revert, definition included.
  const json second = host_.varve_json({"snapshot", "revert", "vm", safety});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 5));
  EXPECT_THAT(host_.varve_ok({"vm", "show", "vm", "--xml"}), HasSubstr("7</vcpu>"));
  EXPECT_THAT(names("vm"), UnorderedElementsAre("empty", safety, second["safety"].get<std::string>()));
  EXPECT_EQ(current("vm"), safety);

  // The next one leaves no safety snapshot but its own, in the metadata as in the images.
  host_.fill("vm.qcow2", 6);
  const std::string third = host_.varve_json({"snapshot", "revert", "vm", "empty"})["safety"];
  EXPECT_THAT(names("vm"), UnorderedElementsAre("empty", third));
  EXPECT_THAT(host_.points("vm.qcow2"), UnorderedElementsAre("empty", third));
  EXPECT_EQ(current("vm"), "empty");
  EXPECT_EQ(parent("vm", third), "empty");
  host_.expect_clean("vm.qcow2");
  host_.varve_ok({"snapshot", "revert", "vm", third});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 6));
}

TEST_F(OperationsTest, ASafetySnapshotThatIsRenamedStays) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "empty"});
  host_.fill("vm.qcow2", 5);
  const std::string safety = host_.varve_json({"snapshot", "revert", "vm", "empty"})["safety"];
  host_.varve_ok({"snapshot", "edit", "vm", safety, "--name", "mine"});
  host_.varve_ok({"snapshot", "revert", "vm", "empty"});
  EXPECT_THAT(names("vm"), Contains("mine"));
  host_.varve_ok({"snapshot", "revert", "vm", "mine"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 5));
}

TEST_F(OperationsTest, RevertWithoutSafetyKeepsNothing) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "empty"});
  host_.fill("vm.qcow2", 5);
  const json done = host_.varve_json({"snapshot", "revert", "vm", "empty", "--no-safety"});
  EXPECT_TRUE(done["safety"].is_null());
  EXPECT_THAT(names("vm"), ElementsAre("empty"));
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("empty"));
}

TEST_F(OperationsTest, RevertOfOneDiskLeavesTheOtherAndTheDefinitionAlone) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "empty"});
  host_.varve_ok({"snapshot", "create", "vm", "later"});
  host_.fill("vm.qcow2", 5);
  host_.fill("vm-2.qcow2", 6);
  replace_in_definition("vm", "1</vcpu>", "7</vcpu>");
  const std::string safety = host_.varve_json({"snapshot", "revert", "vm", "empty", "--disk", "vda"})["safety"];
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 0));
  EXPECT_TRUE(host_.is_filled("vm-2.qcow2", 6));
  EXPECT_THAT(host_.varve_ok({"vm", "show", "vm", "--xml"}), HasSubstr("7</vcpu>"));
  EXPECT_EQ(current("vm"), "later");
  EXPECT_THAT(host_.points("vm-2.qcow2"), Not(Contains(safety)));
  EXPECT_THAT(host_.points("vm.qcow2"), Contains(safety));
}

TEST_F(OperationsTest, DisksThatAreLeftOutAreNotTouched) {
  host_.make_domain("vm", 3);
  replace_in_definition("vm", "<target dev='vdb' bus='virtio'/>",
                        "<target dev='vdb' bus='virtio'/>\n      <readonly/>");
  const std::string read_only = test::read_whole_file(host_.image("vm-2.qcow2"));
  const std::string left_out = test::read_whole_file(host_.image("vm-3.qcow2"));
  host_.varve_ok({"snapshot", "create", "vm", "s", "--disk", "vdc=no"});
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("s"));
  EXPECT_EQ(test::read_whole_file(host_.image("vm-2.qcow2")), read_only);
  EXPECT_EQ(test::read_whole_file(host_.image("vm-3.qcow2")), left_out);
  const json shown = host_.varve_json({"snapshot", "show", "vm", "s"});
  EXPECT_EQ(shown["disks"], json::parse(R"([{"target": "vda", "mode": "internal"}, {"target": "vdb", "mode": "no"},
                                            {"target": "vdc", "mode": "no"}])"));
  host_.varve_ok({"snapshot", "revert", "vm", "s"});
  EXPECT_EQ(test::read_whole_file(host_.image("vm-3.qcow2")), left_out);
}

TEST_F(OperationsTest, ADiskThatItsDefinitionLeavesOutIsNotTouched) {
  host_.make_domain("vm");
  replace_in_definition("vm", "device='disk'>\n      <driver name='qemu' type='qcow2'/>",
                        "device='disk' snapshot='no'>\n      <driver name='qemu' type='qcow2'/>");
  host_.varve_ok({"snapshot", "create", "vm", "s"});
  EXPECT_THAT(host_.points("vm.qcow2"), IsEmpty());
  EXPECT_THAT(host_.points("vm-2.qcow2"), ElementsAre("s"));
}

TEST_F(OperationsTest, NamesMayHaveSpacesAndUmlauts) {
  host_.make_domain("Büro PC");
  host_.fill("Büro PC.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "Büro PC", "vor dem Übel", "--description", "läuft & \"gut\" <so>"});
  host_.fill("Büro PC.qcow2", 2);
  EXPECT_THAT(host_.points("Büro PC-2.qcow2"), ElementsAre("vor dem Übel"));
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "Büro PC", "vor dem Übel"})["description"], "läuft & \"gut\" <so>");
  host_.varve_ok({"snapshot", "revert", "Büro PC", "vor dem Übel"});
  EXPECT_TRUE(host_.is_filled("Büro PC.qcow2", 1));
  EXPECT_THAT(host_.varve_ok({"snapshot", "list", "Büro PC"}), HasSubstr("*vor dem Übel "));
}

TEST_F(OperationsTest, WithoutANameTheTimeIsTheName) {
  host_.make_domain("vm", 1);
  const std::string name = host_.varve_json({"snapshot", "create", "vm"})["snapshot"];
  EXPECT_GE(std::stoll(name), 1'700'000'000);
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre(name));
}

TEST_F(OperationsTest, RenamingReachesTheMetadataEveryImageAndTheChildren) {
  host_.make_domain("vm");
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "old"});
  host_.varve_ok({"snapshot", "create", "vm", "child"});
  host_.fill("vm.qcow2", 2);
  host_.varve_ok({"snapshot", "edit", "vm", "old", "--name", "new one", "--description", "renamed"});
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("new one", "child"));
  EXPECT_THAT(host_.points("vm-2.qcow2"), ElementsAre("new one", "child"));
  EXPECT_FALSE(std::filesystem::exists(host_.metadata("vm", "old")));
  EXPECT_EQ(parent("vm", "child"), "new one");
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "new one"})["description"], "renamed");
  host_.varve_ok({"snapshot", "revert", "vm", "new one"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  host_.expect_clean("vm.qcow2");
}

TEST_F(OperationsTest, DeletingTheMiddleRelinksItsChildrenAndGivesTheSpaceBack) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 1, 0, 32);
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  host_.fill("vm.qcow2", 2, 0, 32);
  host_.varve_ok({"snapshot", "create", "vm", "c"});
  const uint64_t before = host_.occupied("vm.qcow2");
  host_.varve_ok({"snapshot", "delete", "vm", "b"});
  EXPECT_LE(host_.occupied("vm.qcow2") + 31 * kMiB, before);
  EXPECT_EQ(parent("vm", "c"), "a");
  EXPECT_EQ(current("vm"), "c");
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("a", "c"));
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 2, 0, 32));
  host_.expect_clean("vm.qcow2");
  host_.varve_ok({"snapshot", "delete", "vm", "c"});
  EXPECT_EQ(current("vm"), "a");
}

TEST_F(OperationsTest, DeletingWithChildrenDeletesAllThatDescends) {
  host_.make_domain("vm");
  for (const char* name : {"a", "b", "c"}) host_.varve_ok({"snapshot", "create", "vm", name});
  host_.varve_ok({"snapshot", "revert", "vm", "a", "--no-safety"});
  host_.varve_ok({"snapshot", "create", "vm", "d"});
  host_.varve_ok({"snapshot", "delete", "vm", "b", "--children"});
  EXPECT_THAT(names("vm"), ElementsAre("a", "d"));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    EXPECT_THAT(host_.points(file), ElementsAre("a", "d"));
    host_.expect_clean(file);
  }
}

TEST_F(OperationsTest, DeletingMetadataOnlyLeavesTheImagesAlone) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string image = test::read_whole_file(host_.image("vm.qcow2"));
  host_.varve_ok({"snapshot", "delete", "vm", "a", "--metadata-only"});
  EXPECT_THAT(names("vm"), IsEmpty());
  EXPECT_EQ(test::read_whole_file(host_.image("vm.qcow2")), image);
  EXPECT_THAT(host_.varve_ok({"where", "vm"}), HasSubstr("In an image, but in no metadata: disk vda: a (id 1)"));
}

TEST_F(OperationsTest, DeletingWhatSomebodyHasTakenFromAnImageAlreadyWorks) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  test::run_ok({"qemu-img", "snapshot", "-d", "a", host_.image("vm-2.qcow2")});
  host_.varve_ok({"snapshot", "delete", "vm", "a"});
  EXPECT_THAT(names("vm"), IsEmpty());
  EXPECT_THAT(host_.points("vm.qcow2"), IsEmpty());
}

TEST_F(OperationsTest, SnapshotsOfVarveAndOfQemuLiveSideBySide) {
  host_.make_domain("vm", 1);
  host_.fill("vm.qcow2", 1);
  test::run_ok({"qemu-img", "snapshot", "-c", "theirs", host_.image("vm.qcow2")});
  host_.fill("vm.qcow2", 2);
  host_.varve_ok({"snapshot", "create", "vm", "ours"});
  host_.fill("vm.qcow2", 3);
  test::run_ok({"qemu-img", "snapshot", "-a", "theirs", host_.image("vm.qcow2")});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  host_.varve_ok({"snapshot", "revert", "vm", "ours"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 2));
  host_.expect_clean("vm.qcow2");
}

TEST_F(OperationsTest, ADryRunSaysWhatItWouldDoAndDoesNothing) {
  host_.make_domain("vm");
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const auto before = host_.contents();
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"snapshot", "create", "vm", "b"},
                                             {"snapshot", "revert", "vm", "a"},
                                             {"snapshot", "edit", "vm", "a", "--name", "b"},
                                             {"snapshot", "delete", "vm", "a"},
                                             {"vm", "undefine", "vm", "--snapshots", "--storage"},
                                             {"vm", "create", "other", "--disk", "1G"}}) {
    std::vector<std::string> arguments = {"--dry-run"};
    arguments.insert(arguments.end(), command.begin(), command.end());
    EXPECT_THAT(host_.varve_ok(arguments), HasSubstr("Nothing was changed"));
    arguments.insert(arguments.begin(), "--json");
    const json plan = json::parse(host_.varve_ok(arguments));
    EXPECT_FALSE(plan["steps"].empty()) << plan;
  }
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(OperationsTest, ATreeThatHasMovedWorksAtItsNewPlace) {
  host_.make_domain("vm");
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2);
  const std::string elsewhere = host_.root() + "-elsewhere";
  std::filesystem::rename(host_.root(), elsewhere);
  const test::HostDirectory moved(elsewhere);
  moved.varve_ok({"snapshot", "revert", "vm", "a"});
  EXPECT_TRUE(moved.is_filled("vm.qcow2", 1));
  EXPECT_TRUE(moved.varve_json({"where", "vm", "a"})["complete"]);
}

TEST_F(OperationsTest, AnImageThatHasMovedIsFoundThroughTheDefinitionOfToday) {
  host_.make_domain("vm", 1);
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2);
  std::filesystem::rename(host_.image("vm.qcow2"), host_.image("renamed.qcow2"));
  replace_in_definition("vm", "images/vm.qcow2", "images/renamed.qcow2");
  const json where = host_.varve_json({"where", "vm", "a"});
  EXPECT_TRUE(where["complete"]) << where;
  EXPECT_EQ(where["disks"][0]["moved_from"], "/var/lib/libvirt/images/vm.qcow2");
  host_.varve_ok({"snapshot", "revert", "vm", "a"});
  EXPECT_TRUE(host_.is_filled("renamed.qcow2", 1));
  EXPECT_THAT(host_.varve_ok({"vm", "show", "vm", "--xml"}), HasSubstr("images/renamed.qcow2"));
}

TEST_F(OperationsTest, RevertBringsBackTheSizeOfTheDiskToo) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "small", "--disk", "vda=internal"});
  test::run_ok({"qemu-img", "resize", "-f", "qcow2", host_.image("vm.qcow2"), "128M"});
  host_.varve_ok({"snapshot", "revert", "vm", "small"});
  EXPECT_THAT(test::run_ok({"qemu-img", "info", host_.image("vm.qcow2")}), HasSubstr("virtual size: 64 MiB"));
}

TEST_F(OperationsTest, RevertDoesNotLamentAnImageThatItOnlyTakesTheOldSafetySnapshotFrom) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"snapshot", "revert", "vm", "a"});  // leaves a safety snapshot in vm.qcow2
  host_.varve_ok({"snapshot", "delete", "vm", "a"});
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "vm.qcow2", host_.image("top.qcow2")});
  std::string xml = host_.varve_ok({"vm", "show", "vm", "--xml"});
  xml.replace(xml.find("vm.qcow2"), 8, "top.qcow2");
  host_.varve_ok({"vm", "define", scratch_.write("vm.xml", xml)});
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  const auto done = host_.varve({"snapshot", "revert", "vm", "b"});
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.err, "");
  EXPECT_THAT(host_.points("vm.qcow2"), IsEmpty());
}

TEST_F(OperationsTest, AnOverlaysOwnSnapshotsWork) {
  host_.make_domain("vm", 1);
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "vm.qcow2", host_.image("top.qcow2")});
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"vm", "create", "overlaid", "--disk", "/var/lib/libvirt/images/top.qcow2,format=qcow2"});
  host_.varve_ok({"snapshot", "create", "overlaid", "a"});
  host_.fill("top.qcow2", 2);
  host_.varve_ok({"snapshot", "revert", "overlaid", "a"});
  EXPECT_TRUE(host_.is_filled("top.qcow2", 1));
  const json where = host_.varve_json({"where", "overlaid", "a"});
  EXPECT_EQ(where["disks"][0]["backing_chain"][0]["path"], "/var/lib/libvirt/images/vm.qcow2");
  EXPECT_THAT(where["to_restore"].get<std::string>(), HasSubstr("vm.qcow2"));
}

TEST_F(OperationsTest, AnImageThatOtherDomainsHaveAsBackingFileIsNotReverted) {
  host_.make_domain("vm", 2);
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2);
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "vm.qcow2", host_.image("top.qcow2")});
  host_.varve_ok({"vm", "create", "overlaid", "--disk", "/var/lib/libvirt/images/top.qcow2,format=qcow2"});
  const auto refused = host_.varve({"snapshot", "revert", "vm", "a"});
  EXPECT_EQ(refused.exit_code, 3) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("vm.qcow2 is a backing file of domain 'overlaid', whose disk would change"));
  EXPECT_TRUE(host_.is_filled("top.qcow2", 2));
  EXPECT_THAT(names("vm"), ElementsAre("a"));
  // The other disk is nobody's backing file.
  host_.varve_ok({"snapshot", "revert", "vm", "a", "--disk", "vdb"});
  host_.varve_ok({"vm", "undefine", "overlaid"});
  host_.varve_ok({"snapshot", "revert", "vm", "a"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

// Not by varve, which would wait for the lock: by somebody who edits files, or by libvirtd.
TEST_F(OperationsTest, WhatSomebodyElseChangedSinceThePlanIsNotOverwritten) {
  host_.make_domain("vm", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const auto host = DirectoryHost::open(host_.root(), {});
  ASSERT_TRUE(host);
  CreateSnapshotRequest request;
  request.domain = "vm";
  request.name = "b";
  request.now_sec = 1'800'000'000;
  {
    auto operation = plan_create_snapshot(**host, request);
    ASSERT_TRUE(operation) << operation.error().message;
    std::string text = test::read_whole_file(host_.metadata("vm", "a"));
    text.replace(text.find("<state>"), 0, "<description>elsewhere</description>");
    std::ofstream(host_.metadata("vm", "a"), std::ios::trunc) << text;
    const auto ran = operation->run();
    ASSERT_FALSE(ran);
    EXPECT_EQ(ran.error().kind, ErrorKind::kInUse);
    EXPECT_THAT(ran.error().message, HasSubstr("'a' is another one"));
  }
  {
    auto operation = plan_create_snapshot(**host, request);
    ASSERT_TRUE(operation) << operation.error().message;
    replace_in_definition("vm", "<name>vm</name>", "<name>vm</name>\n  <title>other</title>");
    const auto ran = operation->run();
    ASSERT_FALSE(ran);
    EXPECT_THAT(ran.error().message, HasSubstr("has changed the definition of 'vm'"));
  }
  EXPECT_THAT(names("vm"), ElementsAre("a"));
  EXPECT_THAT(host_.points("vm.qcow2"), ElementsAre("a"));
  host_.expect_clean("vm.qcow2");
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "a"})["description"], "elsewhere");
}

TEST_F(OperationsTest, WhatNeedsAMachineThatRunsIsRefusedWhereNobodyRunsMachines) {
  host_.make_domain("vm", 1);
  for (const char* option : {"--memory", "--mode=external", "--live", "--quiesce"}) {
    const test::ProcessResult refused = host_.varve({"snapshot", "create", "vm", "a", option});
    EXPECT_EQ(refused.exit_code, 3) << option;
    EXPECT_THAT(refused.err, HasSubstr("libvirtd")) << option;
  }
  host_.varve_ok({"snapshot", "create", "vm", "a", "--disk-only"});
  EXPECT_EQ(host_.varve({"snapshot", "revert", "vm", "a", "--running"}).exit_code, 3);
  // Memory that was saved when the machine stopped knows disks that a revert takes away.
  std::ofstream(host_.root() + "/var/lib/libvirt/qemu/save/vm.save") << "memory";
  const test::ProcessResult saved = host_.varve({"snapshot", "revert", "vm", "a"});
  EXPECT_EQ(saved.exit_code, 3);
  EXPECT_THAT(saved.err, HasSubstr("managed save"));
  EXPECT_THAT(host_.varve({"snapshot", "create", "vm", "b"}).err, HasSubstr("managed save"));
}

}  // namespace
}  // namespace varve
