// A real libvirtd reads what the stores wrote, and the stores read what it wrote.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "domain/schema.h"
#include "store/definition_store.h"
#include "store/metadata_store.h"
#include "support/libvirtd.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr const char* kImages = "/var/lib/libvirt/images/";

class LibvirtDocuments : public ::testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_LIBVIRTD();
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    std::filesystem::create_directories(dir_.path() + kImages);
  }

  std::string image(const std::string& name) const { return dir_.path() + kImages + name; }
  void make_image(const std::string& name) {
    test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", image(name), "16M"});
  }
  void fill(const std::string& name, int byte) {
    test::run_ok({"qemu-io", "-f", "qcow2", "-c", fmt::format("write -P {} 0 1M", byte), image(name)});
  }
  void expect_filled(const std::string& name, int byte) {
    const auto result = test::run({"qemu-io", "-f", "qcow2", "-c", fmt::format("read -P {} 0 1M", byte), image(name)});
    EXPECT_THAT(result.out, Not(HasSubstr("Pattern verification failed"))) << name << " is not " << byte;
    EXPECT_EQ(result.exit_code, 0) << result.err;
  }

  // A domain of two disks and a cdrom, defined in the tree.
  DomainDocument define_in_store(const std::string& name) {
    NewDomain spec;
    spec.name = name;
    spec.uuid = new_uuid();
    spec.type = "qemu";
    spec.memory_bytes = uint64_t{32} << 20;
    spec.disks = {{kImages + std::string("a.qcow2"), "qcow2"}, {kImages + std::string("b.qcow2"), "qcow2"}};
    DomainDocument domain = *DomainDocument::create(spec);
    EXPECT_TRUE(definitions_.save(domain));
    return domain;
  }

  void snapshot_in_store(const DomainDocument& domain, const std::string& name, const std::string& parent, bool current,
                         std::map<std::string, std::string> notes = {}) {
    NewSnapshot spec;
    spec.name = name;
    spec.parent = parent;
    spec.description = "the \"state\" of <" + name + ">";
    spec.creation_time = clock_++;
    spec.current = current;
    spec.notes = std::move(notes);
    const auto snapshot = SnapshotDocument::create(domain, spec);
    ASSERT_TRUE(snapshot) << snapshot.error().message;
    ASSERT_TRUE(snapshots_.save(domain.name(), *snapshot));
  }
  void snapshot_in_images(const std::string& name) {
    for (const char* disk : {"a.qcow2", "b.qcow2"}) test::run_ok({"qemu-img", "snapshot", "-c", name, image(disk)});
  }
  std::string snapshots_in(const std::string& disk) const {
    return test::run_ok({"qemu-img", "snapshot", "-l", image(disk)});
  }

  SnapshotTree tree(const std::string& domain) const {
    const auto listing = snapshots_.list(domain);
    EXPECT_TRUE(listing);
    EXPECT_THAT(listing->problems, IsEmpty());
    return SnapshotTree(listing->snapshots);
  }

  // Every XML file that is in the tree is read and comes back byte for byte.
  void expect_byte_stable(size_t at_least) {
    size_t files = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.path())) {
      const std::string path = entry.path();
      if (!path.ends_with(".xml") || path.find("/networks/") != std::string::npos) continue;
      const bool is_snapshot = path.find("/snapshot/") != std::string::npos;
      if (!is_snapshot && path.find("/etc/libvirt/qemu/") == std::string::npos) continue;
      const std::string text = test::read_whole_file(path);
      if (is_snapshot) {
        const auto snapshot = SnapshotDocument::load(path);
        ASSERT_TRUE(snapshot) << snapshot.error().message;
        EXPECT_EQ(snapshot->to_file(), text) << path;
      } else {
        const auto domain = DomainDocument::load(path);
        ASSERT_TRUE(domain) << domain.error().message;
        EXPECT_EQ(domain->to_file(), text) << path;
      }
      ++files;
    }
    EXPECT_GE(files, at_least);
  }

  test::TempDir dir_;
  DefinitionFiles definitions_{*Layout::open(dir_.path())};
  MetadataFiles snapshots_{*Layout::open(dir_.path())};
  int64_t clock_ = 1700000000;
};

TEST_F(LibvirtDocuments, WhatLibvirtdWritesIsReadAndComesBackByteForByte) {
  make_image("a.qcow2");
  make_image("b.qcow2");
  test::Libvirtd libvirtd(dir_.path());
  const std::string xml = dir_.write("in.txt", R"(<domain type="qemu">
  <name>first</name>
  <title>it's a "title" &amp; more</title>
  <metadata><app:x xmlns:app="urn:app" one='1' two="it's"><app:y>text "q"</app:y></app:x></metadata>
  <memory unit="MiB">32</memory>
  <os><type machine="q35">hvm</type></os>
  <devices>
    <disk type="file"><driver name="qemu" type="qcow2"/><source file="/var/lib/libvirt/images/a.qcow2"/><target dev="vda"/></disk>
    <disk type="file"><driver name="qemu" type="qcow2"/><source file="/var/lib/libvirt/images/b.qcow2"/><target dev="vdb"/></disk>
    <disk type="file" device="cdrom"><target dev="sda" bus="sata"/></disk>
  </devices>
</domain>
)");
  libvirtd.virsh_ok({"define", xml});
  libvirtd.virsh_ok({"snapshot-create-as", "first", "one", "a 'first' <snapshot>"});
  libvirtd.virsh_ok({"snapshot-create-as", "first", "two & a half"});
  libvirtd.virsh_ok({"start", "first"});
  libvirtd.virsh_ok({"snapshot-create-as", "first", "live"});
  libvirtd.virsh_ok({"destroy", "first"});
  libvirtd.virsh_ok({"snapshot-create-as", "first", "outside", "--disk-only"});
  expect_byte_stable(5);

  EXPECT_THAT(*definitions_.names(), ElementsAre("first"));
  const SnapshotTree found = tree("first");
  EXPECT_EQ(found.size(), 4U);
  ASSERT_NE(found.current(), nullptr);
  EXPECT_EQ(found.current()->name, "outside");
  EXPECT_TRUE(found.current()->has_external_disk);
  EXPECT_EQ(found.find("live")->state, SnapshotState::kRunning);
  EXPECT_EQ(found.find("live")->memory, SnapshotMode::kInternal);
  EXPECT_EQ(found.find("one")->description, "a 'first' <snapshot>");

  // What is built here for the same domain is what libvirtd wrote.
  const auto theirs = snapshots_.load("first", "two & a half");
  ASSERT_TRUE(theirs);
  NewSnapshot spec;
  spec.name = theirs->name();
  spec.parent = theirs->parent();
  spec.creation_time = theirs->creation_time();
  spec.current = theirs->current();
  EXPECT_EQ(SnapshotDocument::create(*theirs->domain(), spec)->to_file(), theirs->to_file());
}

TEST_F(LibvirtDocuments, TheCommentOfADefinitionIsLibvirts) {
  test::Libvirtd libvirtd(dir_.path());
  size_t defined = 0;
  for (const std::string name :
       {"plain", "a b",  "a'b", "a--b", "a$b", "M\xC3\xBC", "a;b", "a(b",  "a)b", "#a",  "-a",  "a~",  "a*b",
        "a!b",   "a=b",  "a,b", "a@b",  "a%b", "a+b",       "a{b", "a}b",  "a^b", "a]b", "a[b", "a?b", "a:b",
        "a.b",   "a\\b", "a|b", "a`b",  "a&b", "a<b",       "a>b", "a\"b", "a_b", " a",  "a "}) {
    NewDomain spec;
    spec.name = name;
    spec.uuid = new_uuid();
    spec.type = "qemu";
    libvirtd.virsh_ok({"define", dir_.write("in.txt", DomainDocument::create(spec)->to_xml())});
    ++defined;
  }
  expect_byte_stable(defined);
  EXPECT_EQ(definitions_.list()->domains.size(), defined);
}

TEST_F(LibvirtDocuments, LibvirtdWorksOnADirectoryOfOurs) {
  make_image("a.qcow2");
  make_image("b.qcow2");
  const DomainDocument domain = define_in_store("our vm");
  // base -> { middle -> { leaf, sibling } }, each with its own contents.
  const std::vector<std::pair<std::string, std::string>> family = {
      {"base", ""}, {"middle", "base"}, {"leaf", "middle"}, {"sibling", "middle"}};
  int byte = 1;
  for (const auto& [name, parent] : family) {
    fill("a.qcow2", byte);
    fill("b.qcow2", byte + 100);
    snapshot_in_images(name);
    snapshot_in_store(domain, name, parent, name == "sibling", {{"protected", "yes"}});
    ++byte;
  }

  test::Libvirtd libvirtd(dir_.path());
  EXPECT_THAT(libvirtd.virsh_ok({"list", "--all", "--name"}), HasSubstr("our vm\n"));
  EXPECT_EQ(libvirtd.virsh_ok({"snapshot-list", "our vm", "--tree"}),
            "base\n  |\n  +- middle\n      |\n      +- leaf\n      +- sibling\n        \n\n");
  EXPECT_EQ(libvirtd.virsh_ok({"snapshot-current", "our vm", "--name"}), "sibling\n");

  // Everything that was written, notes included, has come through.
  SchemaSet schemas;
  for (const auto& [name, parent] : family) {
    const std::string dump = libvirtd.virsh_ok({"snapshot-dumpxml", "our vm", name});
    EXPECT_TRUE(schemas.validate(SchemaKind::kDomainSnapshot, dump, name));
    const auto theirs = SnapshotDocument::parse(dump, name);
    ASSERT_TRUE(theirs) << theirs.error().message;
    EXPECT_EQ(theirs->name(), name);
    EXPECT_EQ(theirs->parent(), parent);
    EXPECT_EQ(theirs->description(), "the \"state\" of <" + name + ">");
    EXPECT_EQ(theirs->creation_time(), snapshots_.load("our vm", name)->creation_time());
    EXPECT_EQ(theirs->note("protected"), "yes");
    ASSERT_EQ(theirs->disks().size(), 2U);
    EXPECT_EQ(theirs->disks()[1].mode, SnapshotMode::kInternal);
    EXPECT_EQ(theirs->domain()->disk("vdb")->source, domain.disk("vdb")->source);
  }

  libvirtd.virsh_ok({"snapshot-revert", "our vm", "base"});
  expect_filled("a.qcow2", 1);
  expect_filled("b.qcow2", 101);
  EXPECT_EQ(tree("our vm").current()->name, "base");
  libvirtd.virsh_ok({"snapshot-revert", "our vm", "leaf"});
  expect_filled("a.qcow2", 3);
  expect_filled("b.qcow2", 103);

  const auto expected = tree("our vm").after_deleting({"middle"});
  libvirtd.virsh_ok({"snapshot-delete", "our vm", "middle"});
  const SnapshotTree after = tree("our vm");
  EXPECT_EQ(after.size(), 3U);
  ASSERT_EQ(expected.relinks.size(), 2U);
  for (const auto& relink : expected.relinks) {
    EXPECT_EQ(after.find(relink.child)->parent, relink.new_parent);
    EXPECT_EQ(relink.new_parent, "base");
  }
  EXPECT_THAT(snapshots_in("a.qcow2"), Not(HasSubstr("middle")));
  EXPECT_THAT(snapshots_in("b.qcow2"), HasSubstr("sibling"));
  EXPECT_EQ(after.current()->name, "leaf");

  libvirtd.virsh_ok({"snapshot-delete", "our vm", "base", "--children"});
  EXPECT_TRUE(tree("our vm").empty());
  EXPECT_EQ(snapshots_in("a.qcow2"), "");
  expect_byte_stable(1);
}

// libvirtd makes the inner domain of a snapshot the definition when it reverts, notes and all, and so takes them into
// the next snapshot. They are about another snapshot and must not count there.
TEST_F(LibvirtDocuments, NotesDoNotSpreadThroughARevertOfLibvirtd) {
  make_image("a.qcow2");
  make_image("b.qcow2");
  const DomainDocument domain = define_in_store("vm");
  snapshot_in_images("safe");
  snapshot_in_store(domain, "safe", "", true, {{"safety", "yes"}});
  test::Libvirtd libvirtd(dir_.path());
  libvirtd.virsh_ok({"snapshot-revert", "vm", "safe"});
  libvirtd.virsh_ok({"snapshot-create-as", "vm", "precious"});
  const SnapshotTree found = tree("vm");
  EXPECT_TRUE(found.find("safe")->safety);
  EXPECT_FALSE(found.find("precious")->safety);
  // The same for a snapshot of ours of that definition.
  snapshot_in_store(*definitions_.load("vm"), "ours", "precious", true);
  EXPECT_FALSE(tree("vm").find("ours")->safety);
  EXPECT_THAT(test::read_whole_file(dir_ / "var/lib/libvirt/qemu/snapshot/vm/ours.xml"), Not(HasSubstr("varve")));
}

// Random trees: printed as virsh prints them, and changed by deletions as libvirtd changes them.
TEST_F(LibvirtDocuments, TreesLookAndShrinkAsLibvirts) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const DomainDocument domain = define_in_store("vm");
  std::vector<std::string> names;
  const size_t count = 30;
  const size_t current = random() % count;
  for (size_t i = 0; i < count; ++i) {
    // Names in another order than times, with both cases; now and then another root.
    std::string name = fmt::format("{}{}", random() % 2 != 0 ? "s" : "S", random() % 1000 * 100 + i);
    const std::string parent = i == 0 || random() % 8 == 0 ? "" : names[random() % names.size()];
    snapshot_in_store(domain, name, parent, i == current);
    names.push_back(std::move(name));
  }
  test::Libvirtd libvirtd(dir_.path());
  const auto expect_same_tree = [&] {
    std::string lines;
    tree("vm").for_each_tree_line([&](std::string_view line) { lines += std::string(line) + "\n"; });
    EXPECT_EQ(libvirtd.virsh_ok({"snapshot-list", "vm", "--tree"}), lines + "\n");
  };
  expect_same_tree();
  while (names.size() > 1) {
    const size_t victim = random() % names.size();
    const std::string name = names[victim];
    const SnapshotTree before = tree("vm");
    std::vector<std::string> doomed = {name};
    // libvirtd 9.0 can die of a use after free (in virDomainMomentForEachChild) when it deletes children that have
    // children; deletions of one generation are safe.
    const bool with_children = random() % 3 == 0 && before.descendants(name).size() == before.children(name).size();
    if (with_children) {
      for (const SnapshotSummary* s : before.descendants(name)) doomed.push_back(s->name);
    }
    const auto expected = before.after_deleting(doomed);
    std::vector<std::string> command = {"snapshot-delete", "vm", name, "--metadata"};
    if (with_children) command.emplace_back("--children");
    libvirtd.virsh_ok(command);

    const SnapshotTree after = tree("vm");
    std::erase_if(names,
                  [&](const std::string& n) { return std::find(doomed.begin(), doomed.end(), n) != doomed.end(); });
    ASSERT_EQ(after.size(), names.size());
    for (const auto& relink : expected.relinks) EXPECT_EQ(after.find(relink.child)->parent, relink.new_parent);
    EXPECT_EQ(after.current() == nullptr ? "" : after.current()->name, expected.new_current) << "deleted " << name;
    expect_same_tree();
    if (HasFailure()) break;
  }
}

TEST_F(LibvirtDocuments, ABadFileOfOneSnapshotHidesItFromBoth) {
  const DomainDocument domain = define_in_store("vm");
  snapshot_in_store(domain, "good", "", true);
  dir_.write("var/lib/libvirt/qemu/snapshot/vm/bad.xml", "<domainsnapshot><name>bad");
  test::Libvirtd libvirtd(dir_.path());
  EXPECT_EQ(libvirtd.virsh_ok({"snapshot-list", "vm", "--name"}), "good\n\n");
  const auto listing = snapshots_.list("vm");
  ASSERT_TRUE(listing);
  EXPECT_EQ(listing->snapshots.size(), 1U);
  ASSERT_EQ(listing->problems.size(), 1U);
  EXPECT_THAT(listing->problems[0].message, HasSubstr("bad.xml"));
}

TEST_F(LibvirtDocuments, RedefiningWithOurDumpKeepsThePlaceInTheTree) {
  const DomainDocument domain = define_in_store("vm");
  snapshot_in_store(domain, "base", "", false);
  snapshot_in_store(domain, "top", "base", true);
  test::Libvirtd libvirtd(dir_.path());
  SnapshotDocument top = *snapshots_.load("vm", "top");
  top.set_description("told anew");
  libvirtd.virsh_ok({"snapshot-create", "vm", dir_.write("in.txt", top.to_xml()), "--redefine", "--current"});
  const SnapshotTree found = tree("vm");
  EXPECT_EQ(found.find("top")->description, "told anew");
  EXPECT_EQ(found.find("top")->parent, "base");
  EXPECT_EQ(found.current()->name, "top");
}

}  // namespace
}  // namespace varve
