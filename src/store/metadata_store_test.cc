#include "store/metadata_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "support/temp_dir.h"

namespace varve {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class MetadataStoreTest : public ::testing::Test {
 protected:
  static SnapshotDocument snapshot(const std::string& name, const std::string& parent = {}, bool current = false) {
    static const DomainDocument domain = [] {
      NewDomain spec;
      spec.name = "vm";
      spec.uuid = new_uuid();
      spec.disks = {{"/var/lib/libvirt/images/a.qcow2", "qcow2"}, {"/var/lib/libvirt/images/b.qcow2", "qcow2"}};
      return *DomainDocument::create(spec);
    }();
    NewSnapshot spec;
    spec.name = name;
    spec.parent = parent;
    spec.creation_time = 1700000000;
    spec.current = current;
    return *SnapshotDocument::create(domain, spec);
  }
  void put(const std::string& file, const std::string& contents) {
    std::filesystem::create_directories(directory_);
    dir_.write("var/lib/libvirt/qemu/snapshot/vm/" + file, contents);
  }
  test::TempDir dir_;
  std::string directory_ = dir_ / "var/lib/libvirt/qemu/snapshot/vm";
  MetadataFiles store_{*Layout::open(dir_.path())};
};

TEST_F(MetadataStoreTest, ADomainWithoutADirectoryHasNoSnapshots) {
  EXPECT_THAT(*store_.names("vm"), IsEmpty());
  EXPECT_THAT(store_.list("vm")->snapshots, IsEmpty());
  EXPECT_THAT(*store_.domains(), IsEmpty());
  EXPECT_FALSE(*store_.exists("vm", "s"));
  EXPECT_EQ(store_.load("vm", "s").error().kind, ErrorKind::kNotFound);
}

TEST_F(MetadataStoreTest, WhatIsSavedIsFoundAgain) {
  ASSERT_TRUE(store_.save("vm", snapshot("base")));
  ASSERT_TRUE(store_.save("vm", snapshot("a--b \xC3\xA4", "base", true)));
  EXPECT_THAT(*store_.names("vm"), ElementsAre("a--b \xC3\xA4", "base"));
  EXPECT_THAT(*store_.domains(), ElementsAre("vm"));
  const auto listing = store_.list("vm");
  ASSERT_TRUE(listing);
  EXPECT_THAT(listing->problems, IsEmpty());
  const SnapshotTree tree(listing->snapshots);
  EXPECT_EQ(tree.current()->name, "a--b \xC3\xA4");
  EXPECT_EQ(tree.current()->parent, "base");
  EXPECT_EQ(store_.load("vm", "base")->to_file(), snapshot("base").to_file());
  EXPECT_EQ(test::read_whole_file(directory_ + "/base.xml"), snapshot("base").to_file());
  struct stat status{};
  ASSERT_EQ(::stat((directory_ + "/base.xml").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  EXPECT_TRUE(*store_.exists("vm", "base"));

  ASSERT_TRUE(store_.remove("vm", "base"));
  const auto gone = store_.load("vm", "base");
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().message, "'vm' has no snapshot 'base'");
  EXPECT_THAT(gone.error().notes, Contains("there are: a--b \xC3\xA4"));
  ASSERT_TRUE(store_.remove("vm", "a--b \xC3\xA4"));
  EXPECT_THAT(*store_.domains(), IsEmpty());
}

TEST_F(MetadataStoreTest, ChangesAreHandedOutForTheJournal) {
  const SnapshotDocument s = snapshot("s");
  const std::string path = "/var/lib/libvirt/qemu/snapshot/vm/s.xml";
  EXPECT_EQ(store_.saving("vm", s), (FileChange{path, s.to_file(), 0600}));
  EXPECT_EQ(store_.removing("vm", "s"), (FileChange{path, std::nullopt, 0600}));
  EXPECT_FALSE(std::filesystem::exists(directory_));
}

TEST_F(MetadataStoreTest, ABadFileIsReportedAndLeftAlone) {
  ASSERT_TRUE(store_.save("vm", snapshot("good")));
  put("broken.xml", "<domainsnapshot>");
  put("definition.xml", "<domain><name>definition</name></domain>");
  put("moved.xml", snapshot("elsewhere").to_file());
  put("huge.xml", "<domainsnapshot>" + std::string(size_t{17} << 20, ' ') + "</domainsnapshot>");
  put("notes.txt", "mine");
  const auto listing = store_.list("vm");
  ASSERT_TRUE(listing);
  ASSERT_EQ(listing->snapshots.size(), 1U);
  std::vector<std::string> problems;
  for (const Error& error : listing->problems) problems.push_back(error.message);
  EXPECT_THAT(problems, ElementsAre(HasSubstr("broken.xml"), HasSubstr("not a <domainsnapshot>"), HasSubstr("huge.xml"),
                                    HasSubstr("another name, 'elsewhere'")));
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/broken.xml"));
  EXPECT_EQ(store_.load("vm", "moved").error().kind, ErrorKind::kCorrupt);
}

TEST_F(MetadataStoreTest, NamesThatAreNoFileNamesAreRefused) {
  for (const std::string name : {"", "..", "a/b", "../vm/base"}) {
    EXPECT_EQ(store_.load("vm", name).error().kind, ErrorKind::kInvalidArgument) << name;
    EXPECT_EQ(store_.load(name, "s").error().kind, ErrorKind::kInvalidArgument) << name;
    EXPECT_EQ(store_.list(name).error().kind, ErrorKind::kInvalidArgument) << name;
    EXPECT_EQ(store_.names(name).error().kind, ErrorKind::kInvalidArgument) << name;
    EXPECT_FALSE(*store_.exists("vm", name));
  }
}

TEST_F(MetadataStoreTest, TenThousandSnapshotsAreListedQuickly) {
  constexpr int kCount = 10000;
  std::filesystem::create_directories(directory_);
  SnapshotDocument document = snapshot("s");
  for (int i = 0; i < kCount; ++i) {
    const std::string name = "s" + std::to_string(i);
    ASSERT_TRUE(document.set_name(name));
    document.set_parent(i == 0 ? "" : "s" + std::to_string(i - 1));
    std::ofstream(directory_ + "/" + name + ".xml") << document.to_file();  // without ten thousand fsyncs
  }
  const auto start = std::chrono::steady_clock::now();
  const auto listing = store_.list("vm");
  const auto took = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(listing);
  EXPECT_EQ(listing->snapshots.size(), static_cast<size_t>(kCount));
  RecordProperty("milliseconds", static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
  // About a second and a half; sanitizers take several times that, anything quadratic minutes.
  EXPECT_LT(took, std::chrono::seconds(30));
}

}  // namespace
}  // namespace varve
