// What `varve verify` finds on hosts that were damaged on purpose, and what its repair makes of them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "interop/host_directory.h"

namespace varve {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr int kOk = 0;
constexpr int kWarning = 1;
constexpr int kCritical = 2;
constexpr int kUnknown = 3;

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

// A big-endian word of an image.
uint64_t word_at(std::fstream& image, uint64_t offset) {
  char bytes[8];
  image.seekg(static_cast<std::streamoff>(offset)).read(bytes, sizeof bytes);
  uint64_t word = 0;
  for (const char byte : bytes) word = word << 8 | static_cast<unsigned char>(byte);
  return word;
}

void put_bytes(std::fstream& image, uint64_t offset, std::string_view bytes) {
  image.seekp(static_cast<std::streamoff>(offset)).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::fstream open_image(const std::string& path) {
  return std::fstream(path, std::ios::in | std::ios::out | std::ios::binary);
}

class VerifyTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
  }

  struct Verified {
    int exit_code = 0;
    json report;
  };
  Verified verify(std::vector<std::string> arguments = {"vm"}) const {
    arguments.insert(arguments.begin(), {"--json", "verify"});
    const test::ProcessResult result = host_.varve(std::move(arguments));
    return {result.exit_code, json::parse(result.out, nullptr, false)};
  }
  static std::vector<json> findings(const Verified& verified) {
    std::vector<json> all;
    for (const json& domain : verified.report["domains"]) {
      for (const json& finding : domain["findings"]) all.push_back(finding);
    }
    for (const json& finding : verified.report["host"]) all.push_back(finding);
    return all;
  }
  static std::vector<std::string> kinds(const Verified& verified) {
    std::vector<std::string> kinds;
    for (const json& finding : findings(verified)) kinds.push_back(finding["kind"]);
    return kinds;
  }
  // The repair ends well, the host is sound afterwards, and a second repair finds nothing to do.
  void expect_repaired(int exit_code = kOk) {
    const test::ProcessResult repaired = host_.varve({"verify", "vm", "--repair"});
    EXPECT_EQ(repaired.exit_code, exit_code) << repaired.out << repaired.err;
    const auto before = host_.contents();
    const Verified again = verify({"vm", "--repair"});
    EXPECT_EQ(again.exit_code, exit_code) << again.report.dump(2);
    EXPECT_EQ(host_.contents(), before);
  }
  void edit_metadata(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = read_text(host_.metadata("vm", name));
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << text;
    write_text(host_.metadata("vm", name), text.replace(at, from.size(), to));
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const json& snapshot : host_.varve_json({"snapshot", "list", "vm"})) names.push_back(snapshot["name"]);
    return names;
  }
  std::string aside(const std::string& file) const { return host_.root() + "/var/lib/varve/aside/vm/" + file; }

  test::HostDirectory host_;
};

TEST_F(VerifyTest, ASoundHostHasNothingToSay) {
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2);
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  const auto before = host_.contents();
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kOk);
  EXPECT_EQ(verified.report["status"], "ok");
  EXPECT_THAT(kinds(verified), IsEmpty()) << verified.report.dump(2);
  EXPECT_EQ(verified.report["domains"][0]["images"], 2);
  EXPECT_EQ(verified.report["domains"][0]["snapshots"], 2);
  EXPECT_EQ(host_.varve_ok({"verify", "vm"}), "vm: 2 images, 2 snapshots: all is well\n");
  EXPECT_EQ(host_.varve_ok({"-q", "verify", "--all"}), "");
  EXPECT_EQ(verify({"vm", "--repair"}).exit_code, kOk);
  EXPECT_EQ(host_.contents(), before);
}

TEST_F(VerifyTest, ADomainThatIsNotThereIsNotFound) {
  const test::ProcessResult result = host_.varve({"verify", "nobody"});
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_THAT(result.err, HasSubstr("nobody"));
  EXPECT_EQ(host_.varve({"verify", "vm", "--all"}).exit_code, 2);
}

TEST_F(VerifyTest, ASnapshotThatOneDiskLostLeavesThatDiskOut) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  test::run_ok({"qemu-img", "snapshot", "-d", "a", host_.image("vm-2.qcow2")});
  const std::string damaged = read_text(host_.metadata("vm", "a"));
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  ASSERT_THAT(kinds(verified), ElementsAre("missing-point"));
  const json finding = findings(verified)[0];
  EXPECT_EQ(finding["snapshot"], "a");
  EXPECT_EQ(finding["disks"], json::array({"vdb"}));
  EXPECT_TRUE(finding["repairable"]);
  expect_repaired();
  EXPECT_EQ(read_text(aside("a.xml")), damaged);
  const std::string xml = host_.varve_ok({"snapshot", "show", "vm", "a", "--xml"});
  EXPECT_THAT(xml, AllOf(HasSubstr("<disk name='vda' snapshot='internal'/>"),
                         HasSubstr("<disk name='vdb' snapshot='no'/>"), HasSubstr("left out disk vdb")));
  host_.varve_ok({"snapshot", "revert", "vm", "a"});
}

TEST_F(VerifyTest, ASnapshotThatNoDiskHasIsKeptAsideAndTheTreeClosed) {
  for (const char* name : {"a", "b", "c"}) host_.varve_ok({"snapshot", "create", "vm", name});
  for (const char* image : {"vm.qcow2", "vm-2.qcow2"}) {
    test::run_ok({"qemu-img", "snapshot", "-d", "b", host_.image(image)});
  }
  const std::string lost = read_text(host_.metadata("vm", "b"));
  EXPECT_THAT(kinds(verify()), ElementsAre("missing-point"));
  expect_repaired();
  EXPECT_THAT(names(), ElementsAre("a", "c"));
  EXPECT_EQ(read_text(aside("b.xml")), lost);
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "c"})["parent"], "a");
}

TEST_F(VerifyTest, WhatLostItsPointAndWasCurrentHandsTheMarkOn) {
  for (const char* name : {"a", "b"}) host_.varve_ok({"snapshot", "create", "vm", name});
  for (const char* image : {"vm.qcow2", "vm-2.qcow2"}) {
    test::run_ok({"qemu-img", "snapshot", "-d", "b", host_.image(image)});
  }
  expect_repaired();
  EXPECT_TRUE(host_.varve_json({"snapshot", "show", "vm", "a"})["current"]);
}

TEST_F(VerifyTest, APointThatNobodyKnowsIsAdopted) {
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  for (const char* image : {"vm.qcow2", "vm-2.qcow2"}) {
    test::run_ok({"qemu-img", "snapshot", "-c", "found täg", host_.image(image)});
  }
  test::run_ok({"qemu-img", "snapshot", "-c", "one", host_.image("vm.qcow2")});
  host_.fill("vm.qcow2", 2);
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kWarning);
  ASSERT_THAT(kinds(verified), ElementsAre("unknown-point", "unknown-point"));
  EXPECT_EQ(findings(verified)[0]["disks"], json::array({"vda", "vdb"}));
  EXPECT_EQ(findings(verified)[1]["disks"], json::array({"vda"}));
  const auto before = host_.contents();
  EXPECT_EQ(host_.varve({"--dry-run", "verify", "vm", "--repair"}).exit_code, kWarning);
  EXPECT_EQ(host_.contents(), before);
  expect_repaired();
  EXPECT_THAT(names(), ElementsAre("a", "found täg", "one"));
  EXPECT_FALSE(host_.varve_json({"snapshot", "show", "vm", "one"})["current"]);
  const json info = json::parse(test::run_ok({"qemu-img", "info", "--output=json", host_.image("vm.qcow2")}));
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "one"})["creation_time"], info["snapshots"][2]["date-sec"]);
  host_.varve_ok({"snapshot", "revert", "vm", "found täg"});
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

TEST_F(VerifyTest, APointWhoseNameIsNoFileNameIsLeftToAPerson) {
  test::run_ok({"qemu-img", "snapshot", "-c", "a/b", host_.image("vm.qcow2")});
  const Verified verified = verify();
  ASSERT_THAT(kinds(verified), ElementsAre("unknown-point"));
  EXPECT_FALSE(findings(verified)[0]["repairable"]);
  EXPECT_THAT(findings(verified)[0]["remedy"].get<std::string>(), HasSubstr("snapshot -d 'a/b'"));
  expect_repaired(kWarning);
}

TEST_F(VerifyTest, MetadataThatCanNotBeReadIsKeptAsideAndItsPointAdopted) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string broken = read_text(host_.metadata("vm", "a")).substr(0, 300);
  write_text(host_.metadata("vm", "a"), broken);
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  EXPECT_THAT(kinds(verified), ElementsAre("unreadable-metadata"));
  expect_repaired();
  EXPECT_EQ(read_text(aside("a.xml")), broken);
  EXPECT_THAT(names(), ElementsAre("a"));
  EXPECT_THAT(host_.varve_json({"snapshot", "show", "vm", "a"})["description"].get<std::string>(),
              HasSubstr("without metadata"));
}

TEST_F(VerifyTest, MetadataInAFileOfAnotherNameGetsItsName) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.varve_ok({"snapshot", "create", "vm", "b"});
  std::filesystem::rename(host_.metadata("vm", "a"), host_.metadata("vm", "old"));
  EXPECT_THAT(kinds(verify()), ElementsAre("misnamed-metadata"));
  expect_repaired();
  EXPECT_THAT(names(), ElementsAre("a", "b"));
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "b"})["parent"], "a");
}

TEST_F(VerifyTest, TwoFilesThatDescribeOneSnapshotAreLeftToAPerson) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  std::filesystem::copy_file(host_.metadata("vm", "a"), host_.metadata("vm", "copy"));
  const Verified verified = verify();
  EXPECT_THAT(kinds(verified), ElementsAre("misnamed-metadata"));
  EXPECT_FALSE(findings(verified)[0]["repairable"]);
  expect_repaired(kCritical);
}

TEST_F(VerifyTest, ParentsThatAreMissingOrGoInCirclesAreCut) {
  for (const char* name : {"a", "b", "c"}) host_.varve_ok({"snapshot", "create", "vm", name});
  edit_metadata("a", "<state>", "<parent>\n    <name>c</name>\n  </parent>\n  <state>");
  const Verified circle = verify();
  EXPECT_EQ(circle.exit_code, kWarning);
  EXPECT_THAT(kinds(circle), ElementsAre("parent-circle"));
  expect_repaired();
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "b"})["parent"], "a");

  edit_metadata("b", "<name>a</name>", "<name>gone</name>");
  EXPECT_THAT(kinds(verify()), ElementsAre("missing-parent"));
  expect_repaired();
  EXPECT_TRUE(host_.varve_json({"snapshot", "show", "vm", "b"})["parent"].is_null());
}

TEST_F(VerifyTest, OfSeveralCurrentSnapshotsOneStays) {
  for (const char* name : {"a", "b", "c"}) host_.varve_ok({"snapshot", "create", "vm", name});
  edit_metadata("a", "<active>0</active>", "<active>1</active>");
  EXPECT_THAT(kinds(verify()), ElementsAre("several-current"));
  expect_repaired();
  EXPECT_TRUE(host_.varve_json({"snapshot", "show", "vm", "a"})["current"]);
  EXPECT_FALSE(host_.varve_json({"snapshot", "show", "vm", "c"})["current"]);
}

TEST_F(VerifyTest, AMissingImageIsNamedAndItsSnapshotsAreNotGivenUp) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  std::filesystem::rename(host_.image("vm-2.qcow2"), host_.image("elsewhere"));
  test::run_ok({"qemu-img", "snapshot", "-d", "a", host_.image("vm.qcow2")});
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  EXPECT_THAT(kinds(verified), ElementsAre("missing-file", "missing-point"));
  EXPECT_FALSE(findings(verified)[1]["repairable"]);
  expect_repaired(kCritical);
  EXPECT_THAT(names(), ElementsAre("a"));
}

// The points are there, whatever today's definition says of the image.
TEST_F(VerifyTest, ADefinitionThatCallsTheImageRawLosesNoSnapshot) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  std::string definition = read_text(host_.definition("vm"));
  for (size_t at = 0; (at = definition.find("type='qcow2'")) != std::string::npos;)
    definition.replace(at, 12, "type='raw'");
  write_text(host_.definition("vm"), definition);
  EXPECT_THAT(kinds(verify()), IsEmpty());
}

TEST_F(VerifyTest, LeaksAndErrorsOfAnImageAreMended) {
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  {  // a refcount of a cluster behind the end: a leak
    std::filesystem::resize_file(host_.image("vm-2.qcow2"), 100 * 65536);
    std::fstream file = open_image(host_.image("vm-2.qcow2"));
    put_bytes(file, word_at(file, word_at(file, 48)) + 90 * 2, std::string_view("\0\1", 2));
  }
  const Verified leaks = verify();
  EXPECT_EQ(leaks.exit_code, kWarning);
  ASSERT_THAT(kinds(leaks), ElementsAre("image-leaks"));
  EXPECT_THAT(findings(leaks)[0]["message"].get<std::string>(), HasSubstr("1 leaked cluster"));
  expect_repaired();
  host_.expect_clean("vm-2.qcow2");

  {  // the refcounts of the first clusters: errors
    std::fstream file = open_image(host_.image("vm.qcow2"));
    put_bytes(file, word_at(file, word_at(file, 48)), std::string_view("\0\0\0\0", 4));
  }
  const Verified errors = verify();
  EXPECT_EQ(errors.exit_code, kCritical);
  EXPECT_THAT(kinds(errors), ElementsAre("image-errors"));
  expect_repaired();
  host_.expect_clean("vm.qcow2");
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

// Nobody knows what the damaged snapshot refers to, and a repair would give it away as leaks.
TEST_F(VerifyTest, AnImageWithADamagedEntryIsNotMended) {
  host_.fill("vm.qcow2", 1);
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  host_.fill("vm.qcow2", 2);
  {
    std::fstream file = open_image(host_.image("vm.qcow2"));
    put_bytes(file, word_at(file, 64) + 7, "\x01");  // the L1 table, no longer aligned
  }
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  EXPECT_THAT(kinds(verified), testing::Contains("damaged-point"));
  for (const json& finding : findings(verified)) EXPECT_FALSE(finding["repairable"]) << finding.dump(2);
  expect_repaired(kCritical);
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 2));
}

// The leaks are what the broken reference refers to: a repair would give the guest's data away.
TEST_F(VerifyTest, ErrorsThatCanOnlyBeGivenUpAreLeftToAPerson) {
  host_.fill("vm.qcow2", 1);
  std::fstream file = open_image(host_.image("vm.qcow2"));
  const uint64_t table = word_at(file, 40);
  put_bytes(file, table + 6, "\x02");  // the first L2 table, no longer aligned
  file.flush();
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  ASSERT_THAT(kinds(verified), testing::Contains("image-errors"));
  for (const json& finding : findings(verified)) EXPECT_FALSE(finding["repairable"]) << finding.dump(2);
  expect_repaired(kCritical);
  put_bytes(file, table + 6, std::string_view("\0", 1));
  file.close();
  host_.expect_clean("vm.qcow2");
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
}

// The image of that time is not there, the disk of today is another one: that says nothing about the snapshot.
TEST_F(VerifyTest, ASnapshotInAnImageThatIsAwayIsNotGivenUp) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string base = host_.image("vm-2.qcow2");
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", host_.image("other.qcow2"), "64M"});
  std::string definition = read_text(host_.definition("vm"));
  const size_t at = definition.find("vm-2.qcow2");
  ASSERT_NE(at, std::string::npos);
  write_text(host_.definition("vm"), definition.replace(at, 10, "other.qcow2"));
  std::filesystem::rename(base, base + ".away");
  const Verified away = verify();
  EXPECT_THAT(kinds(away), ElementsAre("missing-point"));
  EXPECT_FALSE(findings(away)[0]["repairable"]);
  expect_repaired(kCritical);
  std::filesystem::rename(base + ".away", base);
  EXPECT_THAT(kinds(verify()), IsEmpty());
}

TEST_F(VerifyTest, AParentWhoseFileCanNotBeUsedNowStaysTheParent) {
  for (const char* name : {"p", "c"}) host_.varve_ok({"snapshot", "create", "vm", name});
  edit_metadata("p", "<name>p</name>", "<name>c</name>");
  EXPECT_THAT(kinds(verify()), testing::Not(testing::Contains("missing-parent")));
  expect_repaired(kCritical);
  EXPECT_EQ(host_.varve_json({"snapshot", "show", "vm", "c"})["parent"], "p");
}

TEST_F(VerifyTest, WhatIsKeptAsideReplacesNothingThatWasThere) {
  for (const char* name : {"a", "a.2"}) {
    host_.varve_ok({"snapshot", "create", "vm", name});
    write_text(host_.metadata("vm", name), std::string("<broken ") + name);
  }
  std::filesystem::create_directories(std::filesystem::path(aside("x")).parent_path());
  write_text(aside("a.xml"), "earlier");
  expect_repaired();
  EXPECT_EQ(read_text(aside("a.xml")), "earlier");
  EXPECT_EQ(read_text(aside("a.2.xml")), "<broken a");
  EXPECT_EQ(read_text(aside("a.2.2.xml")), "<broken a.2");
}

TEST_F(VerifyTest, AnImageThatIsNoneIsNamed) {
  write_text(host_.image("vm.qcow2"), std::string(100000, 'x'));
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  EXPECT_THAT(kinds(verified), ElementsAre("unreadable-image"));
  expect_repaired(kCritical);
}

TEST_F(VerifyTest, AnImageInUseIsUnknownAndNoError) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  test::BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image("vm.qcow2")});
  user.write("write 0 64k\n");
  ASSERT_TRUE(user.wait_for("wrote"));
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kUnknown);
  EXPECT_EQ(verified.report["status"], "unknown");
  EXPECT_THAT(kinds(verified), ElementsAre("not-examined"));
}

// An overlay on the domain's first image, put there with qemu-img.
TEST_F(VerifyTest, BackingLinksThatAreUnsafeOrBrokenAreNamed) {
  const auto overlay = [&](const std::string& backing, const std::vector<std::string>& format) {
    std::filesystem::remove(host_.image("vm-2.qcow2"));
    std::vector<std::string> command = {"qemu-img", "create", "-q", "-f", "qcow2", "-b", backing};
    command.insert(command.end(), format.begin(), format.end());
    command.push_back(host_.image("vm-2.qcow2"));
    if (format.empty()) command.emplace_back("-u"), command.emplace_back("64M");
    test::run(command);
  };
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", host_.image("base.qcow2"), "64M"});
  overlay("base.qcow2", {"-F", "qcow2"});
  EXPECT_EQ(verify().exit_code, kOk);
  EXPECT_EQ(verify().report["domains"][0]["images"], 3);

  // As seen from the root of the tree.
  test::run_ok({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "/var/lib/libvirt/images/base.qcow2",
                host_.image("vm-2.qcow2")});
  const Verified absolute = verify();
  EXPECT_EQ(absolute.exit_code, kOk);
  ASSERT_THAT(kinds(absolute), ElementsAre("absolute-link"));
  EXPECT_THAT(findings(absolute)[0]["remedy"].get<std::string>(), HasSubstr("-b 'base.qcow2'"));

  std::filesystem::rename(host_.image("base.qcow2"), host_.image("moved.qcow2"));
  const Verified broken = verify();
  EXPECT_EQ(broken.exit_code, kCritical);
  EXPECT_THAT(kinds(broken), ElementsAre("broken-chain", "absolute-link"));

  std::filesystem::rename(host_.image("moved.qcow2"), host_.image("base.qcow2"));
  test::run_ok({"qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", host_.image("vm-2.qcow2")});
  EXPECT_EQ(verify().exit_code, kOk);
}

TEST_F(VerifyTest, ABackingFileWhoseFormatNobodyRecordedIsNamed) {
  test::run_ok({"qemu-img", "create", "-q", "-f", "raw", host_.image("base"), "64M"});
  std::filesystem::remove(host_.image("vm-2.qcow2"));
  // QEMU 7.2 does not make such images any more: the extension with the format is blotted out.
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", host_.image("vm-2.qcow2")});
  std::string bytes = read_text(host_.image("vm-2.qcow2"));
  const size_t extension = bytes.find("\xe2\x79\x2a\xca");
  ASSERT_NE(extension, std::string::npos);
  bytes.replace(extension, 4, "\x12\x34\x56\x78");
  write_text(host_.image("vm-2.qcow2"), bytes);
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kWarning);
  EXPECT_THAT(kinds(verified), ElementsAre("no-format"));
}

TEST_F(VerifyTest, AMergeThatLibvirtDidNotEndIsNamed) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  edit_metadata("a", "<disk name='vda' snapshot='internal'/>",
                "<disk name='vda' snapshot='internal'>\n      <snapshotDeleteInProgress/>\n    </disk>");
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kCritical);
  ASSERT_THAT(kinds(verified), ElementsAre("interrupted-merge"));
  EXPECT_EQ(findings(verified)[0]["disks"], json::array({"vda"}));
}

TEST_F(VerifyTest, ADiskThatWasOfAnotherSizeIsANote) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  test::run_ok({"qemu-img", "resize", "-f", "qcow2", host_.image("vm.qcow2"), "128M"});
  const Verified verified = verify();
  EXPECT_EQ(verified.exit_code, kOk);
  EXPECT_THAT(kinds(verified), ElementsAre("other-size"));
}

TEST_F(VerifyTest, WhatInterruptedCommandsLeftIsTidiedUp) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::string directory = std::filesystem::path(host_.metadata("vm", "a")).parent_path();
  write_text(directory + "/.varve-0123456789abcdef.tmp", "half");
  write_text(directory + "/b.xml.new", "half");
  const std::string in_definitions = host_.root() + "/etc/libvirt/qemu/.varve-0123456789abcdef.tmp";
  write_text(in_definitions, "half");
  write_text(host_.root() + "/var/lib/varve/lock/gone", "");
  // Somebody may be about to write the one that is new.
  EXPECT_THAT(kinds(verify({"--all"})), ElementsAre("temporary-file", "temporary-file", "unused-lock"));
  const timespec long_ago[2] = {{1000000000, 0}, {1000000000, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, in_definitions.c_str(), long_ago, 0), 0);
  const Verified verified = verify({"--all"});
  EXPECT_EQ(verified.exit_code, kOk);
  EXPECT_THAT(kinds(verified), ElementsAre("temporary-file", "temporary-file", "temporary-file", "unused-lock"));
  EXPECT_EQ(host_.varve({"verify", "--all", "--repair"}).exit_code, kOk);
  EXPECT_THAT(kinds(verify({"--all"})), IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(in_definitions));
  EXPECT_FALSE(std::filesystem::exists(host_.root() + "/var/lib/varve/lock/gone"));
  EXPECT_TRUE(std::filesystem::exists(host_.root() + "/var/lib/varve/lock/vm"));
}

// What a tree from elsewhere calls a leftover may lead to an image.
TEST_F(VerifyTest, ALinkIsNoLeftover) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  const std::filesystem::path directory = std::filesystem::path(host_.metadata("vm", "a")).parent_path();
  std::filesystem::create_symlink("/var/lib/libvirt/images/vm.qcow2", directory / ".varve-0123456789abcdef.tmp");
  std::filesystem::create_symlink("/var/lib/libvirt/images/vm.qcow2", host_.root() + "/var/lib/varve/lock/gone");
  EXPECT_EQ(host_.varve({"verify", "--all", "--repair"}).exit_code, kOk);
  EXPECT_THAT(kinds(verify({"--all"})), IsEmpty());
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm.qcow2")));
}

TEST_F(VerifyTest, MetadataOfADomainThatIsGoneAndDefinitionsThatAreBrokenAreNamed) {
  host_.make_domain("other", 1);
  host_.varve_ok({"snapshot", "create", "other", "a"});
  const std::string definition = read_text(host_.definition("other"));
  std::filesystem::remove(host_.definition("other"));
  const Verified gone = verify({"--all"});
  EXPECT_EQ(gone.exit_code, kCritical);
  EXPECT_THAT(kinds(gone), ElementsAre("metadata-of-no-domain"));
  write_text(host_.definition("other"), "<domain>");
  EXPECT_EQ(verify({"--all"}).exit_code, kCritical);
  EXPECT_THAT(kinds(verify({"--all"})), testing::Contains("unreadable-definition"));
  write_text(host_.definition("other"), definition);
  EXPECT_THAT(kinds(verify({"--all"})), IsEmpty());
}

// Two domains with one image: what the one knows, the other does not adopt.
TEST_F(VerifyTest, APointOfAnotherDomainIsNotUnknown) {
  host_.make_domain("twin", 1);
  std::string definition = read_text(host_.definition("twin"));
  const size_t at = definition.find("twin.qcow2");
  ASSERT_NE(at, std::string::npos);
  write_text(host_.definition("twin"), definition.replace(at, 10, "vm.qcow2"));
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  EXPECT_THAT(kinds(verify({"twin"})), IsEmpty());
}

TEST_F(VerifyTest, TheTextSaysWhatIsWrongAndWhatHelps) {
  host_.varve_ok({"snapshot", "create", "vm", "a"});
  test::run_ok({"qemu-img", "snapshot", "-d", "a", host_.image("vm-2.qcow2")});
  const test::ProcessResult result = host_.varve({"verify", "vm"});
  EXPECT_EQ(
      result.out,
      "vm: 2 images, 1 snapshot: 1 problem\n"
      "  error    snapshot 'a': the image of disk vdb does not hold it any more\n"
      "           `varve snapshot revert --disk` takes back the others; `--repair` leaves out the disks that lack "
      "it, and says so in its description\n");
  const test::ProcessResult repaired = host_.varve({"verify", "vm", "--repair"});
  EXPECT_THAT(repaired.err,
              AllOf(HasSubstr("To repair 'vm':\n  1. leave disk vdb out of 'a'"), Not(HasSubstr("  2."))));
  EXPECT_THAT(repaired.out, HasSubstr("vm: 2 images, 1 snapshot: all is well\n"));
}

}  // namespace
}  // namespace varve
