#include "operation/metadata_edit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "support/temp_dir.h"

namespace varve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class MetadataEditTest : public testing::Test {
 protected:
  // a <- b <- c (current), a <- d
  void SetUp() override {
    NewDomain domain;
    domain.name = "vm";
    domain.uuid = new_uuid();
    domain.disks = {{"/var/lib/libvirt/images/vm.qcow2", "qcow2"}};
    definition_ = *DomainDocument::create(domain);
    save("a", "", false);
    save("b", "a", false);
    save("c", "b", true);
    save("d", "a", false);
  }
  SnapshotDocument snapshot(const std::string& name, const std::string& parent, bool current) {
    NewSnapshot spec;
    spec.name = name;
    spec.parent = parent;
    spec.current = current;
    spec.creation_time = 1'700'000'000;
    return *SnapshotDocument::create(*definition_, spec);
  }
  void save(const std::string& name, const std::string& parent, bool current) {
    ASSERT_TRUE(store_.save("vm", snapshot(name, parent, current)));
  }
  MetadataEdit begin() { return *MetadataEdit::begin(store_, "vm"); }
  // Writes the changes, and gives "name<parent" of every snapshot, with '*' at the current ones.
  std::vector<std::string> after(const MetadataEdit& edit) {
    for (const FileChange& change : edit.changes()) EXPECT_TRUE(apply(layout_, change));
    std::vector<std::string> result;
    const MetadataStore::Listing listing = *store_.list("vm");
    for (const SnapshotSummary& s : listing.snapshots) {
      result.push_back(s.name + "<" + s.parent + (s.current ? "*" : ""));
    }
    return result;
  }

  test::TempDir dir_;
  Layout layout_ = *Layout::open(dir_.path());
  MetadataFiles store_{layout_};
  std::optional<DomainDocument> definition_;
};

TEST_F(MetadataEditTest, NothingEditedIsNothingToWrite) {
  EXPECT_THAT(begin().changes(), IsEmpty());
}

TEST_F(MetadataEditTest, RemovingRelinksChildrenAndMovesCurrent) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.remove({"b", "c"}));
  EXPECT_THAT(after(edit), ElementsAre("a<*", "d<a"));
}

TEST_F(MetadataEditTest, RemovingARootMakesRoots) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.remove({"a"}));
  EXPECT_THAT(after(edit), ElementsAre("b<", "c<b*", "d<"));
}

TEST_F(MetadataEditTest, RenamingTakesTheChildrenAlong) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.rename("b", "z"));
  EXPECT_THAT(after(edit), ElementsAre("a<", "c<z*", "d<a", "z<a"));
}

TEST_F(MetadataEditTest, ANewCurrentOneTakesTheMarkFromEveryOther) {
  save("d", "a", true);  // somebody has edited files: two claim it
  MetadataEdit edit = begin();
  edit.add(snapshot("e", "c", true));
  ASSERT_TRUE(edit.set_current("e"));
  EXPECT_THAT(after(edit), ElementsAre("a<", "b<a", "c<b", "d<a", "e<c*"));
}

TEST_F(MetadataEditTest, RemovingTheCurrentOneAndThenChoosingAnotherLeavesOneMark) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.remove({"c"}));  // b would be current
  ASSERT_TRUE(edit.set_current("d"));
  EXPECT_THAT(after(edit), ElementsAre("a<", "b<a", "d<a*"));
}

TEST_F(MetadataEditTest, FilesThatAreRemovedComeAfterThoseThatAreWritten) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.rename("a", "z"));
  const std::vector<FileChange> changes = edit.changes();
  ASSERT_FALSE(changes.empty());
  EXPECT_FALSE(changes.back().contents.has_value());
  EXPECT_THAT(changes.back().path, HasSubstr("/a.xml"));
}

TEST_F(MetadataEditTest, AFileThatCannotBeReadTakesItsNameAndIsReported) {
  std::ofstream(dir_ / "var/lib/libvirt/qemu/snapshot/vm/broken.xml") << "<domainsnapshot>";
  const MetadataEdit edit = begin();
  EXPECT_TRUE(edit.has("broken"));
  EXPECT_THAT(edit.problems(), UnorderedElementsAre(HasSubstr("broken.xml")));
}

TEST_F(MetadataEditTest, ParentsAreWrittenBeforeTheirChildren) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.rename("a", "z"));
  std::vector<std::string> written;
  for (const FileChange& change : edit.changes()) {
    if (change.contents) written.push_back(change.path.substr(change.path.rfind('/') + 1));
  }
  EXPECT_THAT(written, ElementsAre("z.xml", "b.xml", "d.xml"));
}

TEST_F(MetadataEditTest, WhatSomebodyElseChangesMeanwhileIsNoticed) {
  MetadataEdit edit = begin();
  ASSERT_TRUE(edit.remove({"b"}));
  const auto still_valid = edit.still_valid();
  EXPECT_TRUE(still_valid());
  const auto changed = [&] {
    const auto answer = still_valid();
    EXPECT_FALSE(answer);
    if (answer) return std::string();
    EXPECT_EQ(answer.error().kind, ErrorKind::kInUse);
    return answer.error().message;
  };
  // The child of what is removed is written again.
  SnapshotDocument child = *store_.load("vm", "c");
  const SnapshotDocument before = child;
  child.set_description("from elsewhere");
  ASSERT_TRUE(store_.save("vm", child));
  EXPECT_THAT(changed(), HasSubstr("'c' is another one"));
  ASSERT_TRUE(store_.save("vm", before));
  EXPECT_TRUE(still_valid());
  // What is not written may change.
  SnapshotDocument other = *store_.load("vm", "d");
  other.set_description("from elsewhere");
  ASSERT_TRUE(store_.save("vm", other));
  EXPECT_TRUE(still_valid());
  save("e", "b", false);
  EXPECT_THAT(changed(), HasSubstr("'e' is new"));
  ASSERT_TRUE(store_.remove("vm", "e"));
  ASSERT_TRUE(store_.remove("vm", "d"));
  EXPECT_THAT(changed(), HasSubstr("'d' is gone"));
}

}  // namespace
}  // namespace varve
