#include "fuzz/document_entry_points.h"

#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/endian.h"
#include "domain/domain_document.h"
#include "domain/snapshot_document.h"
#include "domain/xml.h"
#include "store/journal_record.h"

namespace varve::fuzz {
namespace {

constexpr const char* kName = "fuzz.xml";

// Whether it is XML that we take at all.
bool is_xml(std::string_view text) {
  const auto document = xml::Document::parse(text, kName);
  if (!document) return false;
  // Converted documents, which declare another encoding than UTF-8, are the only ones that may come back otherwise.
  const bool declares_encoding = text.find("encoding") != std::string_view::npos || text.starts_with("\xef\xbb\xbf") ||
                                 text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff") ||
                                 text.find('\0') != std::string_view::npos;
  CHECK(declares_encoding || document->to_string() == text);
  return true;
}

}  // namespace

void domain_xml(std::string_view text) {
  if (!is_xml(text)) return;
  auto document = DomainDocument::parse(text, kName);
  if (!document) return;
  (void)document->memory_bytes();
  (void)document->vcpus();
  (void)document->nvram_path();
  for (const Disk& disk : document->disks()) (void)disk.in_snapshots_by_default();
  CHECK(document->set_name("renamed"));
  document->set_uuid("00000000-0000-4000-8000-000000000000");
  if (!document->disks().empty()) {
    const std::string target = document->disks().front().target;
    (void)document->set_disk_source(target, "/var/lib/libvirt/images/<&'\">.qcow2");
  }
  const auto again = DomainDocument::parse(document->to_file(), kName);
  CHECK(again && again->name() == "renamed" && again->disks().size() == document->disks().size());
}

void snapshot_xml(std::string_view text) {
  if (!is_xml(text)) return;
  auto document = SnapshotDocument::parse(text, kName);
  if (!document) return;
  (void)document->summary();
  (void)document->disks();
  (void)document->memory();
  (void)document->notes();
  (void)document->domain();
  (void)document->inactive_domain();
  document->set_description("a <b> & 'c'");
  document->set_parent("parent");
  document->set_current(true);
  const bool noted = document->set_note("safety", "yes").has_value();
  const auto again = SnapshotDocument::parse(document->to_file(), kName);
  CHECK(again && again->description() == "a <b> & 'c'" && again->parent() == "parent" && again->current());
  CHECK(!noted || again->note("safety") == "yes");
  // libvirtd never sees which one is current.
  const auto sent = SnapshotDocument::parse(document->to_xml(), kName);
  CHECK(sent && !sent->current() && sent->name() == document->name());
}

namespace {

constexpr size_t kPrologueBytes = 24;  // magic, version, checksum, length

void record(std::span<const std::byte> bytes) {
  const auto parsed = parse_record(bytes);
  if (!parsed) return;
  const std::vector<std::byte> written = serialize_record(*parsed);
  const auto version = load_be<uint32_t>(bytes.data() + 8);
  const bool is_same = std::equal(written.begin(), written.end(), bytes.begin(), bytes.end());
  CHECK(is_same || (version == 1 && *parse_record(written) == *parsed));
  for (const JournalImage& image : parsed->images) CHECK(image.path.starts_with('/'));
  for (const FileChange& change : parsed->changes) CHECK(change.path.starts_with('/'));
  for (const auto* paths : {&parsed->removed_images, &parsed->removed_directories})
    for (const std::string& path : *paths) CHECK(path.starts_with('/'));
}

}  // namespace

void journal(std::span<const std::byte> bytes) {
  record(bytes);
  if (bytes.size() < kPrologueBytes) return;
  static const std::vector<std::byte> good = serialize_record({});
  const auto payload = bytes.subspan(kPrologueBytes);
  std::vector<std::byte> sealed(good.begin(), good.begin() + 12);
  sealed.resize(kPrologueBytes);
  store_be(sealed.data() + 12,
           static_cast<uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(payload.data()), payload.size())));
  store_be(sealed.data() + 16, uint64_t{payload.size()});
  sealed.insert(sealed.end(), payload.begin(), payload.end());
  record(sealed);
}

}  // namespace varve::fuzz
