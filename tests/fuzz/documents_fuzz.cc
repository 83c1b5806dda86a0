// Any bytes as a domain definition and as snapshot metadata: parsed, asked for everything, edited, written. A document
// that was not changed must come back byte for byte.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "domain/domain_document.h"
#include "domain/snapshot_document.h"
#include "domain/xml.h"

namespace {

void domain(std::string_view text) {
  auto document = varve::DomainDocument::parse(text, "fuzz.xml");
  if (!document) return;
  static_cast<void>(document->memory_bytes());
  static_cast<void>(document->vcpus());
  static_cast<void>(document->nvram_path());
  for (const varve::Disk& disk : document->disks()) static_cast<void>(disk.in_snapshots_by_default());
  if (!document->set_name("renamed")) __builtin_trap();
  document->set_uuid("00000000-0000-4000-8000-000000000000");
  if (!document->disks().empty()) {
    const std::string target = document->disks().front().target;
    static_cast<void>(document->set_disk_source(target, "/var/lib/libvirt/images/<&'\">.qcow2"));
  }
  // What we write we can read.
  if (!varve::DomainDocument::parse(document->to_file(), "fuzz.xml")) __builtin_trap();
}

void snapshot(std::string_view text) {
  auto document = varve::SnapshotDocument::parse(text, "fuzz.xml");
  if (!document) return;
  static_cast<void>(document->summary());
  static_cast<void>(document->disks());
  static_cast<void>(document->notes());
  static_cast<void>(document->domain());
  static_cast<void>(document->inactive_domain());
  document->set_description("a <b> & 'c'");
  document->set_parent("parent");
  document->set_current(true);
  static_cast<void>(document->set_note("safety", "yes"));
  const auto again = varve::SnapshotDocument::parse(document->to_file(), "fuzz.xml");
  if (!again || again->description() != "a <b> & 'c'" || again->parent() != "parent" || !again->current()) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto document = varve::xml::Document::parse(text, "fuzz.xml");
  if (!document) return 0;
  // Converted documents, which declare another encoding than UTF-8, are the only ones that may come back otherwise.
  const bool declares_encoding = text.find("encoding") != std::string_view::npos || text.starts_with("\xef\xbb\xbf") ||
                                 text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff") ||
                                 text.find('\0') != std::string_view::npos;
  if (!declares_encoding && document->to_string() != text) __builtin_trap();
  domain(text);
  snapshot(text);
  return 0;
}
