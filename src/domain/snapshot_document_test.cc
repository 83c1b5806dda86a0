#include "domain/snapshot_document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace varve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

std::string corpus(const std::string& name) {
  std::ifstream in(std::string(VARVE_CORPUS_DIR) + "/libvirt/" + name, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

SnapshotDocument parsed(const std::string& text) {
  auto snapshot = SnapshotDocument::parse(text, "test.xml");
  EXPECT_TRUE(snapshot) << snapshot.error().message;
  if (snapshot) return *snapshot;
  return *SnapshotDocument::parse("<domainsnapshot><name>failed</name><state>shutoff</state></domainsnapshot>", "x");
}

DomainDocument definition(const std::string& name) {
  auto domain = DomainDocument::parse(corpus(name), name);
  EXPECT_TRUE(domain) << domain.error().message;
  return std::move(*domain);
}

SnapshotDocument created(const DomainDocument& domain, const NewSnapshot& spec) {
  auto snapshot = SnapshotDocument::create(domain, spec);
  EXPECT_TRUE(snapshot) << snapshot.error().message;
  return std::move(*snapshot);
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  if (at != std::string::npos) text.replace(at, what.size(), with);
  return text;
}

TEST(SnapshotDocument, ReadsASnapshotOfAShutOffDomain) {
  const SnapshotDocument snapshot = parsed(corpus("snapshot_offline.xml"));
  EXPECT_EQ(snapshot.name(), "before-upgrade");
  EXPECT_EQ(snapshot.description(), "the state of Monday");
  EXPECT_EQ(snapshot.state(), SnapshotState::kShutoff);
  EXPECT_EQ(snapshot.parent(), "");
  EXPECT_GT(snapshot.creation_time(), 1700000000);
  EXPECT_EQ(snapshot.memory().mode, SnapshotMode::kNo);
  EXPECT_FALSE(snapshot.current());
  const auto disks = snapshot.disks();
  ASSERT_EQ(disks.size(), 3U);
  EXPECT_EQ(disks[0].name, "vda");
  EXPECT_EQ(disks[0].mode, SnapshotMode::kInternal);
  EXPECT_EQ(disks[2].name, "sda");
  EXPECT_EQ(disks[2].mode, SnapshotMode::kNo);
  EXPECT_EQ(snapshot.cookie(), nullptr);
  EXPECT_EQ(parsed(corpus("snapshot_offline_child.xml")).parent(), "before-upgrade");
}

TEST(SnapshotDocument, ReadsASnapshotOfARunningDomain) {
  const SnapshotDocument snapshot = parsed(corpus("snapshot_running.xml"));
  EXPECT_EQ(snapshot.state(), SnapshotState::kRunning);
  EXPECT_EQ(snapshot.memory().mode, SnapshotMode::kInternal);
  EXPECT_TRUE(snapshot.current());
  ASSERT_NE(snapshot.cookie(), nullptr);
  EXPECT_NE(snapshot.cookie()->child("cpu"), nullptr);
  const auto inactive = snapshot.inactive_domain();
  ASSERT_TRUE(inactive);
  ASSERT_TRUE(inactive->has_value());
  EXPECT_EQ((*inactive)->name(), "db01");
  EXPECT_EQ((*inactive)->root().name(), "domain");
}

TEST(SnapshotDocument, ReadsAnExternalSnapshotWithMemory) {
  const SnapshotDocument snapshot = parsed(corpus("snapshot_external_memory.xml"));
  EXPECT_EQ(snapshot.memory().mode, SnapshotMode::kExternal);
  EXPECT_EQ(snapshot.memory().file, "/var/lib/libvirt/images/mem1");
  const auto disks = snapshot.disks();
  ASSERT_GE(disks.size(), 1U);
  EXPECT_EQ(disks[0].mode, SnapshotMode::kExternal);
  EXPECT_EQ(disks[0].format, "qcow2");
  EXPECT_EQ(disks[0].source, "/var/lib/libvirt/images/web.three");
  EXPECT_TRUE(snapshot.summary().has_external_disk);
}

TEST(SnapshotDocument, AFileOfLibvirtComesBackByteForByte) {
  for (const char* name : {"snapshot_offline.xml", "snapshot_offline_child.xml", "snapshot_running.xml",
                           "snapshot_external.xml", "snapshot_external_memory.xml", "snapshot_escapes.xml"}) {
    EXPECT_EQ(parsed(corpus(name)).to_file(), corpus(name)) << name;
  }
}

// What libvirt wrote for a domain and what is built here for the definition in it are the same bytes.
TEST(SnapshotDocument, BuildsWhatLibvirtWrites) {
  for (const char* name :
       {"snapshot_offline.xml", "snapshot_offline_child.xml", "snapshot_external.xml", "snapshot_escapes.xml"}) {
    const SnapshotDocument theirs = parsed(corpus(name));
    const auto domain = theirs.domain();
    ASSERT_TRUE(domain) << domain.error().message;
    NewSnapshot spec;
    spec.name = theirs.name();
    spec.description = theirs.description();
    spec.parent = theirs.parent();
    spec.creation_time = theirs.creation_time();
    spec.current = theirs.current();
    spec.disks = theirs.disks();
    SnapshotDocument ours = created(*domain, spec);
    std::string expected = corpus(name);
    // Stale notes that a definition carries along are left out of what we build.
    const std::string note = "<varve:snapshot";
    if (const size_t at = expected.find(note); at != std::string::npos) {
      const size_t line = expected.rfind('\n', at);
      expected.erase(line, expected.find('\n', at) - line);
    }
    const std::string empty = "    <metadata>\n    </metadata>\n";
    if (const size_t at = expected.find(empty); at != std::string::npos) expected.erase(at, empty.size());
    EXPECT_EQ(ours.to_file(), expected) << name;
  }
}

TEST(SnapshotDocument, DisksGetTheModeThatLibvirtWouldChoose) {
  NewSnapshot spec;
  spec.name = "s";
  spec.disks = {{"vdb", SnapshotMode::kNo, "", "", DiskSourceType::kFile}};
  const auto modes = [](const SnapshotDocument& snapshot) {
    std::vector<std::pair<std::string, SnapshotMode>> result;
    for (const SnapshotDisk& disk : snapshot.disks()) result.emplace_back(disk.name, disk.mode);
    return result;
  };
  EXPECT_THAT(
      modes(created(definition("definition_uefi.xml"), spec)),
      ElementsAre(Pair("vda", SnapshotMode::kInternal), Pair("vdb", SnapshotMode::kNo), Pair("vdc", SnapshotMode::kNo),
                  Pair("sdb", SnapshotMode::kManual), Pair("sda", SnapshotMode::kNo)));
}

TEST(SnapshotDocument, SpecificationsThatCannotBeAreRefused) {
  const DomainDocument domain = definition("definition.xml");
  NewSnapshot spec;
  spec.name = "a/b";
  EXPECT_EQ(SnapshotDocument::create(domain, spec).error().kind, ErrorKind::kInvalidArgument);
  spec.name = "s";
  spec.disks = {{"vdq", SnapshotMode::kInternal, "", "", DiskSourceType::kFile}};
  const auto unknown = SnapshotDocument::create(domain, spec);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(unknown.error().message, "'db01' has no disk vdq");
  spec.disks = {{"vda", SnapshotMode::kNo, "", "", DiskSourceType::kFile},
                {"vda", SnapshotMode::kInternal, "", "", DiskSourceType::kFile}};
  EXPECT_EQ(SnapshotDocument::create(domain, spec).error().kind, ErrorKind::kInvalidArgument);
  spec.disks = {{"vda", SnapshotMode::kExternal, "", "", DiskSourceType::kFile}};
  EXPECT_EQ(SnapshotDocument::create(domain, spec).error().kind, ErrorKind::kInvalidArgument);
}

TEST(SnapshotDocument, EditsTouchOneLineEach) {
  const std::string text = corpus("snapshot_offline_child.xml");
  SnapshotDocument snapshot = parsed(text);
  ASSERT_TRUE(snapshot.set_name("re <named>"));
  std::string expected = replaced(text, "<name>after-upgrade</name>", "<name>re &lt;named&gt;</name>");
  EXPECT_EQ(snapshot.to_file(), expected);
  snapshot.set_description("it's\nnew");
  expected = replaced(expected, "  <state>", "  <description>it&apos;s\nnew</description>\n  <state>");
  EXPECT_EQ(snapshot.to_file(), expected);
  snapshot.set_description("");
  expected = replaced(expected, "  <description>it&apos;s\nnew</description>\n", "");
  EXPECT_EQ(snapshot.to_file(), expected);
  snapshot.set_parent("other");
  expected = replaced(expected, "    <name>before-upgrade</name>", "    <name>other</name>");
  EXPECT_EQ(snapshot.to_file(), expected);
  snapshot.set_parent("");
  expected = replaced(expected, "  <parent>\n    <name>other</name>\n  </parent>\n", "");
  EXPECT_EQ(snapshot.to_file(), expected);
  snapshot.set_parent("again");
  expected =
      replaced(expected, "  <creationTime>", "  <parent>\n    <name>again</name>\n  </parent>\n  <creationTime>");
  EXPECT_EQ(snapshot.to_file(), expected);
  const bool was_current = snapshot.current();
  snapshot.set_current(!was_current);
  EXPECT_EQ(snapshot.current(), !was_current);
  snapshot.set_current(was_current);
  EXPECT_EQ(snapshot.to_file(), expected);
  EXPECT_FALSE(snapshot.set_name(".."));
  EXPECT_EQ(snapshot.to_file(), expected);
}

TEST(SnapshotDocument, DumpsWithoutCommentAndActive) {
  const std::string dump = parsed(corpus("snapshot_offline.xml")).to_xml();
  EXPECT_TRUE(dump.starts_with("<domainsnapshot>\n"));
  EXPECT_TRUE(dump.ends_with("  </domain>\n</domainsnapshot>\n"));
  EXPECT_THAT(dump, Not(HasSubstr("active")));
}

TEST(SnapshotDocument, TheDomainInsideIsADefinition) {
  const auto domain = parsed(corpus("snapshot_offline.xml")).domain();
  ASSERT_TRUE(domain) << domain.error().message;
  // libvirt formats the controllers of the running definition in another order than those of the file; all else agrees.
  EXPECT_EQ(domain->name(), "db01");
  EXPECT_EQ(domain->disks().size(), 3U);
  EXPECT_THAT(domain->to_file(), HasSubstr("virsh edit db01\nor other"));
  EXPECT_THAT(domain->to_file(), HasSubstr("-->\n\n<domain type='qemu'>\n  <name>db01</name>\n"));
  EXPECT_TRUE(domain->to_file().ends_with("\n  </devices>\n</domain>\n"));
}

TEST(SnapshotDocument, NotesAreKeptInTheMetadataOfTheDomain) {
  const std::string text = corpus("snapshot_offline.xml");
  SnapshotDocument snapshot = parsed(text);
  EXPECT_EQ(snapshot.note("safety"), std::nullopt);
  ASSERT_TRUE(snapshot.set_note("safety", "yes"));
  ASSERT_TRUE(snapshot.set_note("nvram", "/a \"b\" & 'c'"));
  EXPECT_THAT(snapshot.to_file(),
              HasSubstr("    <description>Two disks; notes: &lt;none&gt;</description>\n    <metadata>\n"
                        "      <varve:snapshot xmlns:varve=\"https://varve.dev/xmlns/snapshot/1.0\" "
                        "created=\""));
  const SnapshotDocument again = parsed(snapshot.to_file());
  EXPECT_THAT(again.notes(), ElementsAre(Pair("nvram", "/a \"b\" & 'c'"), Pair("safety", "yes")));
  EXPECT_TRUE(again.summary().safety);
  EXPECT_FALSE(again.summary().is_protected);
  ASSERT_TRUE(again.domain());
  EXPECT_THAT(again.domain()->to_xml(), Not(HasSubstr("varve")));

  ASSERT_TRUE(snapshot.set_note("nvram", std::nullopt));
  ASSERT_TRUE(snapshot.set_note("safety", std::nullopt));
  EXPECT_EQ(snapshot.to_file(), text);
}

TEST(SnapshotDocument, NotesStandBesideOthersMetadata) {
  SnapshotDocument snapshot = parsed(corpus("snapshot_escapes.xml"));
  ASSERT_TRUE(snapshot.set_note("protected", "yes"));
  EXPECT_TRUE(snapshot.summary().is_protected);
  EXPECT_THAT(snapshot.to_file(), HasSubstr("<app:x xmlns:app="));
  ASSERT_TRUE(snapshot.set_note("protected", std::nullopt));
  EXPECT_THAT(snapshot.to_file(), HasSubstr("<app:x xmlns:app="));
  EXPECT_THAT(snapshot.to_file(), Not(HasSubstr("varve")));
}

// After a revert by libvirtd the definition has the notes of the snapshot that was reverted to.
TEST(SnapshotDocument, NotesOfAnotherSnapshotDoNotCount) {
  const DomainDocument domain = definition("definition.xml");
  NewSnapshot spec;
  spec.name = "safety";
  spec.creation_time = 1000;
  spec.notes = {{"safety", "yes"}};
  const SnapshotDocument first = created(domain, spec);
  ASSERT_TRUE(first.summary().safety);
  // As libvirtd would do it: the whole inner domain becomes the definition, and part of the next snapshot.
  const std::string theirs = replaced(replaced(first.to_file(), "<creationTime>1000<", "<creationTime>2000<"),
                                      "<name>safety</name>", "<name>next</name>");
  SnapshotDocument next = parsed(theirs);
  EXPECT_FALSE(next.summary().safety);
  EXPECT_EQ(next.note("safety"), std::nullopt);
  // And ours take the place of the stale ones: libvirtd keeps only one element of a namespace.
  ASSERT_TRUE(next.set_note("protected", "yes"));
  EXPECT_THAT(next.notes(), ElementsAre(Pair("protected", "yes")));
  EXPECT_THAT(next.to_file(), Not(HasSubstr("safety=")));
  ASSERT_TRUE(first.domain());
  EXPECT_THAT(first.domain()->to_file(), Not(HasSubstr("varve")));
}

TEST(SnapshotDocument, NotesAreFoundByTheirNamespaceWhateverThePrefix) {
  const SnapshotDocument snapshot = parsed(
      "<domainsnapshot xmlns:v='https://varve.dev/xmlns/snapshot/1.0'><name>s</name><state>shutoff</state>"
      "<creationTime>5</creationTime><domain><name>d</name><metadata><varve:snapshot xmlns:varve='urn:other' "
      "created='5' safety='no'/><v:snapshot created='5' safety='yes'/></metadata></domain></domainsnapshot>");
  EXPECT_EQ(snapshot.note("safety"), "yes");
}

TEST(SnapshotDocument, NotesNeedAKeyAndAPlace) {
  SnapshotDocument snapshot = parsed(corpus("snapshot_offline.xml"));
  for (const char* key : {"", "a b", "xmlns", "created", "1", "a='"}) {
    EXPECT_FALSE(snapshot.set_note(key, "x")) << key;
    EXPECT_EQ(snapshot.note(key), std::nullopt) << key;
  }
  SnapshotDocument old = parsed("<domainsnapshot><name>s</name><state>shutoff</state></domainsnapshot>");
  const auto result = old.set_note("safety", "yes");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::kUnsupported);
}

TEST(SnapshotDocument, TheDefinitionCanBeReplaced) {
  SnapshotDocument snapshot = parsed(corpus("snapshot_offline.xml"));
  ASSERT_TRUE(snapshot.set_note("protected", "yes"));
  auto domain = snapshot.domain();
  ASSERT_TRUE(domain);
  ASSERT_TRUE(domain->set_name("renamed"));
  snapshot.set_domain(*domain);
  EXPECT_EQ(snapshot.note("protected"), "yes");
  ASSERT_TRUE(snapshot.set_note("protected", std::nullopt));
  EXPECT_EQ(snapshot.to_file(), replaced(corpus("snapshot_offline.xml"), "<name>db01</name>", "<name>renamed</name>"));
}

TEST(SnapshotDocument, OldDocumentsSayLess) {
  SnapshotDocument old =
      parsed("<domainsnapshot>\n  <name>s</name>\n  <state>running</state>\n  <active>0</active>\n</domainsnapshot>\n");
  EXPECT_EQ(old.memory().mode, SnapshotMode::kInternal);
  EXPECT_TRUE(old.disks().empty());
  EXPECT_EQ(old.creation_time(), 0);
  const auto none = old.domain();
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().kind, ErrorKind::kNotFound);
  old.set_domain(definition("definition.xml"));
  ASSERT_TRUE(old.domain());
  EXPECT_EQ(old.domain()->to_file(), corpus("definition.xml"));
}

TEST(SnapshotDocument, WrongDocumentsAreRefused) {
  const auto refusal = [](const std::string& text) {
    const auto snapshot = SnapshotDocument::parse(text, "snap/x.xml");
    EXPECT_FALSE(snapshot) << text;
    if (snapshot) return std::string();
    EXPECT_EQ(snapshot.error().path, "snap/x.xml");
    return snapshot.error().message;
  };
  EXPECT_THAT(refusal("<domain><name>x</name></domain>"), HasSubstr("<domain>, not a <domainsnapshot>"));
  EXPECT_THAT(refusal("<domainsnapshot><state>shutoff</state></domainsnapshot>"), HasSubstr("no <name>"));
  EXPECT_THAT(refusal("<domainsnapshot><name>x</name></domainsnapshot>"), HasSubstr("no <state>"));
  EXPECT_THAT(refusal("<domainsnapshot><name>x</name><state>dizzy</state></domainsnapshot>"), HasSubstr("'dizzy'"));
  EXPECT_THAT(refusal("<domainsnapshot><name>../../x</name><state>shutoff</state></domainsnapshot>"),
              HasSubstr("no name of a file"));
  EXPECT_THAT(refusal("<!DOCTYPE x><domainsnapshot/>"), HasSubstr("DOCTYPE"));
}

TEST(SnapshotDocument, LeavesOutADisk) {
  constexpr const char* kText =
      "<domainsnapshot>\n  <name>a</name>\n  <state>shutoff</state>\n  <disks>\n    <disk name='vda' "
      "snapshot='internal'/>\n    <disk name='vdb' snapshot='external' type='file'>\n      <source file='/x'/>\n    "
      "</disk>\n  </disks>\n</domainsnapshot>\n";
  auto snapshot = SnapshotDocument::parse(kText, "a.xml");
  ASSERT_TRUE(snapshot);
  ASSERT_TRUE(snapshot->leave_out_disk("vdb"));
  EXPECT_EQ(snapshot->disks()[0].mode, SnapshotMode::kInternal);
  EXPECT_EQ(snapshot->disks()[1].mode, SnapshotMode::kNo);
  EXPECT_TRUE(snapshot->disks()[1].source.empty());
  EXPECT_EQ(snapshot->leave_out_disk("vdc").error().kind, ErrorKind::kNotFound);
}

// Documents of old libvirt do not list disks: all are meant.
TEST(SnapshotDocument, LeavesOutADiskWhereNoneWasListed) {
  constexpr const char* kText =
      "<domainsnapshot><name>a</name><state>shutoff</state><domain type='kvm'><name>vm</name><devices>"
      "<disk type='file' device='disk'><source file='/a'/><target dev='vda'/></disk>"
      "<disk type='file' device='disk'><source file='/b'/><target dev='vdb'/></disk>"
      "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk></devices></domain></domainsnapshot>";
  auto snapshot = SnapshotDocument::parse(kText, "a.xml");
  ASSERT_TRUE(snapshot);
  ASSERT_TRUE(snapshot->leave_out_disk("vda"));
  ASSERT_EQ(snapshot->disks().size(), 3u);
  EXPECT_EQ(snapshot->disks()[0].mode, SnapshotMode::kNo);
  EXPECT_EQ(snapshot->disks()[1].mode, SnapshotMode::kInternal);
  EXPECT_EQ(snapshot->disks()[2].mode, SnapshotMode::kNo);
}

}  // namespace
}  // namespace varve
