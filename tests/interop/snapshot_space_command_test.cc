// `varve snapshot space` and `varve snapshot diff`, beside what qemu-img makes of the same images.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "interop/host_directory.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr uint64_t kMiB = 1 << 20;

class SnapshotSpaceCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    host_.fill("vm.qcow2", 1, 0, 8);
    host_.varve_ok({"snapshot", "create", "vm", "a"});
    host_.fill("vm.qcow2", 2, 4, 8);
    host_.varve_ok({"snapshot", "create", "vm", "b"});
    host_.fill("vm.qcow2", 3, 6, 1);
    host_.fill("vm-2.qcow2", 3, 0, 2);
    host_.varve_ok({"snapshot", "create", "vm", "c"});
    host_.fill("vm.qcow2", 4, 0, 1);
  }

  json space() const { return host_.varve_json({"snapshot", "space", "vm"}); }
  static json of(const json& space, const std::string& snapshot) {
    for (const json& entry : space["snapshots"]) {
      if (entry["name"] == snapshot) return entry;
    }
    return {};
  }
  test::HostDirectory host_;
};

TEST_F(SnapshotSpaceCommandTest, ItSaysWhatEachHoldsAndWhatItAloneHolds) {
  const json seen = space();
  ASSERT_EQ(seen["snapshots"].size(), 3u);
  const auto data = [&](const char* name, const char* disk, const char* key) {
    return of(seen, name)["disks"][disk][key].get<uint64_t>() / kMiB;
  };
  EXPECT_EQ(data("a", "vda", "referenced"), 8u);
  EXPECT_EQ(data("b", "vda", "referenced"), 12u);
  EXPECT_EQ(data("c", "vda", "referenced"), 12u);
  EXPECT_EQ(data("a", "vda", "exclusive"), 4u);  // what b has overwritten
  EXPECT_EQ(data("b", "vda", "exclusive"), 1u);
  EXPECT_EQ(data("c", "vda", "exclusive"), 0u);
  EXPECT_EQ(data("b", "vda", "shared_with_previous"), 4u);
  EXPECT_EQ(data("c", "vda", "shared_with_previous"), 11u);
  EXPECT_EQ(data("c", "vdb", "referenced"), 2u);
  EXPECT_EQ(seen["now"]["disks"]["vda"]["exclusive"].get<uint64_t>() / kMiB, 1u);
  for (const json& disk : seen["disks"]) {
    EXPECT_EQ(disk["files"][0]["occupied"], host_.occupied(disk["target"] == "vda" ? "vm.qcow2" : "vm-2.qcow2"));
  }

  const std::string text = host_.varve_ok({"snapshot", "space", "vm"});
  EXPECT_THAT(text, AllOf(HasSubstr("(now)"), HasSubstr("Alone"), HasSubstr(host_.image("vm-2.qcow2"))));
}

TEST_F(SnapshotSpaceCommandTest, DeletingGivesBackWhatItSays) {
  const json range = host_.varve_json({"snapshot", "space", "vm", "--range", "a..b"})["range"];
  EXPECT_EQ(range["exclusive"].get<uint64_t>() / kMiB, 5u);  // what only a has, and what only b has
  const uint64_t before = host_.occupied("vm.qcow2") + host_.occupied("vm-2.qcow2");
  host_.varve_ok({"snapshot", "delete", "vm", "a"});
  host_.varve_ok({"snapshot", "delete", "vm", "b"});
  const uint64_t after = host_.occupied("vm.qcow2") + host_.occupied("vm-2.qcow2");
  EXPECT_NEAR(static_cast<double>(before - after), range["exclusive"].get<double>(), kMiB / 2.0);
  EXPECT_EQ(of(space(), "c")["disks"]["vda"]["exclusive"].get<uint64_t>() / kMiB, 1u);
}

TEST_F(SnapshotSpaceCommandTest, ARangeIsNamedByItsSnapshots) {
  EXPECT_THAT(host_.varve_ok({"snapshot", "space", "vm", "--range", "b..b"}), HasSubstr("Deleting b..b gives back"));
  const auto wrong = host_.varve({"snapshot", "space", "vm", "--range", "c..a"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.err, AllOf(HasSubstr("'c' was taken after 'a'"), HasSubstr("say a..c")));
  const auto unknown = host_.varve({"snapshot", "space", "vm", "--range", "a..x"});
  EXPECT_EQ(unknown.exit_code, 4);
  EXPECT_THAT(unknown.err, HasSubstr("there are: a, b, c"));
  EXPECT_EQ(host_.varve({"snapshot", "space", "vm", "--range", "a"}).exit_code, 2);
  host_.varve_ok({"snapshot", "create", "vm", "d..e"});
  host_.varve_ok({"snapshot", "space", "vm", "--range", "a..d..e"});
}

TEST_F(SnapshotSpaceCommandTest, WhatCannotBeLookedIntoIsSaid) {
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm-2.qcow2")});
  user.write("write 0 64k\n");
  ASSERT_TRUE(user.wait_for("wrote 65536"));
  const json seen = space();
  EXPECT_THAT(seen["disks"][1]["problem"].get<std::string>(), HasSubstr("in use"));
  EXPECT_EQ(of(seen, "c")["disks"].size(), 1u);
  EXPECT_THAT(host_.varve_ok({"snapshot", "space", "vm"}), HasSubstr("in use"));
}

TEST_F(SnapshotSpaceCommandTest, ASnapshotThatNoMetadataKnowsIsCountedToo) {
  test::run_ok({"qemu-img", "snapshot", "-c", "stray", host_.image("vm.qcow2")});
  EXPECT_EQ(of(space(), "stray")["has_metadata"], false);
  EXPECT_THAT(host_.varve_ok({"snapshot", "space", "vm"}), HasSubstr("stray (no metadata)"));
}

TEST_F(SnapshotSpaceCommandTest, ADifferenceIsWhereItIs) {
  const auto extents = [&](const std::vector<std::string>& points, size_t disk) {
    std::vector<std::string> command = {"snapshot", "diff", "vm"};
    command.insert(command.end(), points.begin(), points.end());
    std::vector<std::pair<uint64_t, uint64_t>> found;
    const json difference = host_.varve_json(command);
    for (const json& extent : difference["disks"][disk]["extents"]) {
      found.emplace_back(extent["start"].get<uint64_t>() / kMiB, extent["length"].get<uint64_t>() / kMiB);
    }
    return found;
  };
  using Extents = std::vector<std::pair<uint64_t, uint64_t>>;
  EXPECT_EQ(extents({"a", "b"}, 0), (Extents{{4, 8}}));
  EXPECT_EQ(extents({"b", "c"}, 0), (Extents{{6, 1}}));
  EXPECT_EQ(extents({"c", "b"}, 0), (Extents{{6, 1}}));
  EXPECT_EQ(extents({"c"}, 0), (Extents{{0, 1}}));
  EXPECT_EQ(extents({"a"}, 0), (Extents{{0, 1}, {4, 8}}));
  EXPECT_EQ(extents({"b", "c"}, 1), (Extents{{0, 2}}));
  EXPECT_EQ(extents({"c"}, 1), Extents{});

  const std::string text = host_.varve_ok({"snapshot", "diff", "vm", "b", "c"});
  EXPECT_THAT(text, AllOf(HasSubstr("Definition: no difference"), HasSubstr("Disk vda: 1 MiB in 1 extent"),
                          HasSubstr("Disk vdb: 2 MiB in 1 extent")));
  EXPECT_THAT(host_.varve_ok({"snapshot", "diff", "vm", "b", "c", "--disk", "vdb"}), Not(HasSubstr("vda")));
  EXPECT_EQ(host_.varve({"snapshot", "diff", "vm", "b", "c", "--disk", "vdz"}).exit_code, 4);
  EXPECT_EQ(host_.varve({"snapshot", "diff", "vm", "b", "x"}).exit_code, 4);
}

TEST_F(SnapshotSpaceCommandTest, ADifferenceOfTheDefinitionIsReadable) {
  std::string definition = test::read_whole_file(host_.definition("vm"));
  const size_t at = definition.find("<vcpu");
  ASSERT_NE(at, std::string::npos);
  const size_t number = definition.find('>', at) + 1;
  definition.replace(number, definition.find('<', number) - number, "7");
  test::TempDir scratch;
  scratch.write("vm.xml", definition);
  host_.varve_ok({"vm", "define", scratch / "vm.xml"});
  const std::string text = host_.varve_ok({"snapshot", "diff", "vm", "c"});
  EXPECT_THAT(text, AllOf(HasSubstr("-  <vcpu"), HasSubstr(">7</vcpu>"), HasSubstr("@@ ")));
  EXPECT_THAT(host_.varve_json({"snapshot", "diff", "vm", "a", "b"})["definition"].get<std::string>(), IsEmpty());
}

}  // namespace
}  // namespace varve
