#include "domain/domain_document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

namespace varve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string corpus(const std::string& name) {
  std::ifstream in(std::string(VARVE_CORPUS_DIR) + "/libvirt/" + name, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

DomainDocument parsed(const std::string& text) {
  auto domain = DomainDocument::parse(text, "test.xml");
  EXPECT_TRUE(domain) << domain.error().message;
  if (domain) return *domain;
  return *DomainDocument::parse("<domain><name>failed</name></domain>", "failed");
}

std::string with_devices(const std::string& devices) {
  return "<domain type='kvm'>\n  <name>x</name>\n  <devices>\n" + devices + "  </devices>\n</domain>\n";
}

TEST(DomainDocument, ReadsWhatLibvirtWrote) {
  const DomainDocument domain = parsed(corpus("definition_uefi.xml"));
  EXPECT_EQ(domain.name(), "firmware");
  EXPECT_EQ(domain.uuid(), "11111111-2222-4333-8444-555555555502");
  EXPECT_EQ(domain.title(), "A machine with UEFI & a volume");
  EXPECT_EQ(domain.type(), "qemu");
  EXPECT_EQ(domain.machine(), "pc-q35-7.2");
  EXPECT_EQ(domain.arch(), "x86_64");
  EXPECT_EQ(domain.memory_bytes(), uint64_t{1} << 30);
  EXPECT_EQ(domain.vcpus(), 2U);
  EXPECT_TRUE(domain.firmware_is_uefi());
  EXPECT_EQ(domain.nvram_path(), "/var/lib/libvirt/qemu/nvram/firmware_VARS.fd");
  ASSERT_EQ(domain.disks().size(), 5U);

  const Disk& vda = *domain.disk("vda");
  EXPECT_EQ(vda.source, "/var/lib/libvirt/images/web.qcow2");
  EXPECT_EQ(vda.format, "qcow2");
  EXPECT_EQ(vda.bus, "virtio");
  EXPECT_EQ(vda.serial, "S-1");
  EXPECT_TRUE(vda.is_local_file());
  EXPECT_TRUE(vda.in_snapshots_by_default());
  EXPECT_GT(vda.line, 10);

  const Disk& vdb = *domain.disk("vdb");
  EXPECT_EQ(vdb.source_type, DiskSourceType::kBlock);
  EXPECT_EQ(vdb.source, "/dev/loop99");
  EXPECT_TRUE(vdb.shareable);

  const Disk& vdc = *domain.disk("vdc");
  EXPECT_EQ(vdc.source_type, DiskSourceType::kNetwork);
  EXPECT_EQ(vdc.source, "rbd:pool/image");
  EXPECT_EQ(vdc.snapshot, SnapshotMode::kNo);
  EXPECT_FALSE(vdc.in_snapshots_by_default());
  EXPECT_FALSE(vdc.is_local_file());

  const Disk& volume = *domain.disk("sdb");
  EXPECT_EQ(volume.source, "default/v.qcow2");
  EXPECT_EQ(volume.snapshot, SnapshotMode::kManual);

  const Disk& cdrom = *domain.disk("sda");
  EXPECT_EQ(cdrom.device, DiskDevice::kCdrom);
  EXPECT_EQ(cdrom.source, "");
  EXPECT_TRUE(cdrom.readonly);
  EXPECT_FALSE(cdrom.in_snapshots_by_default());
  EXPECT_EQ(domain.disk("vdz"), nullptr);
}

TEST(DomainDocument, AFileOfLibvirtComesBackByteForByte) {
  for (const char* name : {"definition.xml", "definition_uefi.xml", "definition_escapes.xml"}) {
    EXPECT_EQ(parsed(corpus(name)).to_file(), corpus(name)) << name;
  }
}

TEST(DomainDocument, NamesThatAShellWouldTripOverAreNotInTheComment) {
  const DomainDocument domain = parsed(corpus("definition_escapes.xml"));
  EXPECT_EQ(domain.name(), "my vm's \"\xC3\xBC\" & co");
  EXPECT_THAT(domain.to_file(), HasSubstr("  virsh edit 11111111-2222-4333-8444-555555555504\n"));
  DomainDocument other = domain;
  ASSERT_TRUE(other.set_name("M\xC3\xBCnchen"));
  EXPECT_THAT(other.to_file(), HasSubstr("  virsh edit M\xC3\xBCnchen\n"));
  ASSERT_TRUE(other.set_name("a--b"));
  EXPECT_THAT(other.to_file(), HasSubstr("  virsh edit 11111111-"));
}

TEST(DomainDocument, ADefinitionByHandGetsTheComment) {
  const std::string text = "<!-- my note -->\n<domain type=\"kvm\">\n\t<name>x</name>\n</domain>\n";
  const std::string file = parsed(text).to_file();
  EXPECT_THAT(file, StartsWith("<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE."));
  EXPECT_TRUE(file.ends_with("-->\n\n" + text)) << file;
}

TEST(DomainDocument, MemoryKnowsItsUnits) {
  const auto memory = [](const std::string& element) {
    return parsed("<domain><name>x</name>" + element + "</domain>").memory_bytes();
  };
  EXPECT_EQ(memory("<memory>4</memory>"), 4096U);
  EXPECT_EQ(memory("<memory unit='b'> 512 </memory>"), 512U);
  EXPECT_EQ(memory("<memory unit='GiB'>2</memory>"), uint64_t{2} << 30);
  EXPECT_EQ(memory("<memory unit='MB'>1</memory>"), 1000000U);
  EXPECT_EQ(memory("<memory unit='furlong'>1</memory>"), std::nullopt);
  EXPECT_EQ(memory("<memory unit='EiB'>99</memory>"), std::nullopt);
  EXPECT_EQ(memory("<memory>-1</memory>"), std::nullopt);
  EXPECT_EQ(memory(""), std::nullopt);
}

TEST(DomainDocument, ChangingADiskLeavesTheRestAlone) {
  DomainDocument domain = parsed(corpus("definition.xml"));
  ASSERT_TRUE(domain.set_disk_source("vdb", "/srv/it's.qcow2"));
  EXPECT_EQ(domain.disk("vdb")->source, "/srv/it's.qcow2");
  std::string expected = corpus("definition.xml");
  const std::string old = "/var/lib/libvirt/images/log.qcow2";
  expected.replace(expected.find(old), old.size(), "/srv/it&apos;s.qcow2");
  EXPECT_EQ(domain.to_file(), expected);
}

TEST(DomainDocument, ADiskWithoutMediumGetsASource) {
  DomainDocument domain = parsed(
      with_devices("    <disk type='file' device='cdrom'>\n      <target dev='sda' bus='sata'/>\n    </disk>\n"));
  ASSERT_TRUE(domain.set_disk_source("sda", "/a.iso"));
  EXPECT_THAT(domain.to_xml(), HasSubstr("\n      <source file='/a.iso'/>\n      <target dev='sda' bus='sata'/>"));
}

TEST(DomainDocument, ChangesThatCannotBeAreRefused) {
  DomainDocument domain = parsed(corpus("definition_uefi.xml"));
  const std::string before = domain.to_file();
  const auto missing = domain.set_disk_source("vdz", "/x");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  const auto network = domain.set_disk_source("vdc", "/x");
  ASSERT_FALSE(network);
  EXPECT_EQ(network.error().kind, ErrorKind::kUnsupported);
  EXPECT_FALSE(domain.set_name("a/b"));
  EXPECT_EQ(domain.to_file(), before);
}

TEST(DomainDocument, NameAndUuidAreChangedInPlace) {
  DomainDocument domain = parsed("<domain>\n  <name>a</name>\n  <vcpu>1</vcpu>\n</domain>\n");
  ASSERT_TRUE(domain.set_name("b & c"));
  domain.set_uuid("11111111-2222-4333-8444-555555555555");
  EXPECT_EQ(domain.to_xml(),
            "<domain>\n  <name>b &amp; c</name>\n  <uuid>11111111-2222-4333-8444-555555555555</uuid>\n"
            "  <vcpu>1</vcpu>\n</domain>\n");
}

TEST(DomainDocument, BackingFilesAreRead) {
  const DomainDocument domain = parsed(with_devices(
      "<disk type='file'><source file='/c'/><backingStore type='file'><format type='qcow2'/><source file='/b'/>"
      "<backingStore type='block'><source dev='/dev/a'/><backingStore/></backingStore></backingStore>"
      "<target dev='vda'/></disk>"));
  EXPECT_THAT(domain.disks()[0].backing_files, ElementsAre("/b", "/dev/a"));
  EXPECT_EQ(domain.disks()[0].format, "");
}

TEST(DomainDocument, NvramIsFoundInBothSpellings) {
  DomainDocument domain = parsed(
      "<domain><name>x</name><os firmware='efi'><nvram type='file'><source file='/v.fd'/></nvram></os></domain>");
  EXPECT_TRUE(domain.firmware_is_uefi());
  EXPECT_EQ(domain.nvram_path(), "/v.fd");
  domain.set_nvram_path("/w.fd");
  EXPECT_EQ(domain.nvram_path(), "/w.fd");
  EXPECT_EQ(parsed("<domain><name>x</name><os><nvram/></os></domain>").nvram_path(), std::nullopt);
  EXPECT_EQ(parsed(corpus("definition.xml")).nvram_path(), std::nullopt);
}

TEST(DomainDocument, ANewDefinitionHasWhatWasAskedFor) {
  NewDomain spec;
  spec.name = "new <one>";
  spec.uuid = new_uuid();
  spec.memory_bytes = uint64_t{512} << 20;
  spec.vcpus = 3;
  spec.disks = {{"/var/lib/libvirt/images/a.qcow2", "qcow2"}, {"/var/lib/libvirt/images/b.img", "raw"}};
  const auto domain = DomainDocument::create(spec);
  ASSERT_TRUE(domain) << domain.error().message;
  EXPECT_EQ(domain->name(), "new <one>");
  EXPECT_EQ(domain->uuid(), spec.uuid);
  EXPECT_EQ(domain->memory_bytes(), spec.memory_bytes);
  EXPECT_EQ(domain->vcpus(), 3U);
  ASSERT_EQ(domain->disks().size(), 2U);
  EXPECT_EQ(domain->disk("vdb")->source, "/var/lib/libvirt/images/b.img");
  EXPECT_EQ(domain->disk("vdb")->format, "raw");
  EXPECT_EQ(parsed(domain->to_file()).to_file(), domain->to_file());
  EXPECT_THAT(domain->to_xml(), HasSubstr("\n    <disk type='file' device='disk'>\n      <driver name='qemu' "
                                          "type='qcow2'/>\n      <source file='/var/lib/libvirt/images/a.qcow2'/>\n"
                                          "      <target dev='vda' bus='virtio'/>\n    </disk>\n"));
}

TEST(DomainDocument, DiskTargetsGoOnBehindZ) {
  NewDomain spec;
  spec.name = "x";
  spec.disks.resize(size_t{26} * 27, {"/a", "qcow2"});
  const auto domain = DomainDocument::create(spec);
  ASSERT_TRUE(domain);
  EXPECT_EQ(domain->disks()[25].target, "vdz");
  EXPECT_EQ(domain->disks()[26].target, "vdaa");
  EXPECT_EQ(domain->disks()[26 * 27 - 1].target, "vdzz");
  spec.disks.push_back({"/a", "qcow2"});
  EXPECT_FALSE(DomainDocument::create(spec));
  spec.disks.clear();
  spec.name = "..";
  EXPECT_FALSE(DomainDocument::create(spec));
}

TEST(DomainDocument, UuidsAreRandomAndOfVersion4) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    const std::string uuid = new_uuid();
    EXPECT_THAT(uuid, ::testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
    EXPECT_TRUE(seen.insert(uuid).second);
  }
}

TEST(DomainDocument, WrongDocumentsAreRefusedWithTheLine) {
  const auto refusal = [](const std::string& text) {
    const auto domain = DomainDocument::parse(text, "etc/x.xml");
    EXPECT_FALSE(domain) << text;
    if (domain) return std::string();
    EXPECT_EQ(domain.error().kind, ErrorKind::kCorrupt);
    EXPECT_EQ(domain.error().path, "etc/x.xml");
    return domain.error().message;
  };
  EXPECT_THAT(refusal("<network><name>x</name></network>"), HasSubstr("<network>, not a <domain>"));
  EXPECT_THAT(refusal("\n<domain/>"), HasSubstr("line 2: the domain has no <name>"));
  EXPECT_THAT(refusal("<domain><name>../x</name></domain>"), HasSubstr("no name of a file"));
  EXPECT_THAT(refusal("<domain><name/></domain>"), HasSubstr("empty"));
  EXPECT_THAT(refusal("<domain><name>" + std::string(1 << 20, 'n') + "</name></domain>"), HasSubstr("too long"));
  EXPECT_THAT(refusal(with_devices("<disk/>\n")), HasSubstr("line 4: a disk without a target"));
  EXPECT_THAT(refusal(with_devices("<disk device='tape'><target dev='a'/></disk>")), HasSubstr("'tape'"));
  EXPECT_THAT(refusal(with_devices("<disk snapshot='maybe'><target dev='a'/></disk>")), HasSubstr("'maybe'"));
  EXPECT_THAT(refusal(with_devices("<disk><target dev='a'/></disk>\n<disk><target dev='a'/></disk>\n")),
              HasSubstr("line 5: two disks have the target a"));
}

}  // namespace
}  // namespace varve
