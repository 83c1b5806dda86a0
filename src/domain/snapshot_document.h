// A snapshot's metadata: libvirt's domainsnapshot XML, as it stands in var/lib/libvirt/qemu/snapshot/DOMAIN/NAME.xml.
// Built, read and edited so that libvirtd takes it for its own; what is not understood is kept byte for byte.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "domain/xml.h"

namespace varve {

// Varve's own notes stand in <metadata> of the <domain> inside the snapshot, as attributes of <varve:snapshot>.
// libvirtd carries them along unchanged; too far, even: when it reverts, they become part of the domain's definition,
// and from there part of later snapshots. So they say which snapshot they are about (created='…', its creation time),
// and count for no other.
inline constexpr const char* kVarveNamespace = "https://varve.dev/xmlns/snapshot/1.0";
inline constexpr const char* kVarvePrefix = "varve";

enum class SnapshotState : uint8_t {
  kShutoff,
  kRunning,
  kPaused,
  kBlocked,
  kShutdown,
  kCrashed,
  kPmSuspended,
  kNoState,
  kDiskSnapshot
};
const char* name_of(SnapshotState state);  // "shutoff", "disk-snapshot"

struct SnapshotMemory {
  SnapshotMode mode = SnapshotMode::kNo;  // kNo, kInternal, kExternal
  std::string file;                       // kExternal: as seen from ROOT
};

struct SnapshotDisk {
  std::string name;  // the target: "vda"
  SnapshotMode mode = SnapshotMode::kNo;
  std::string format;                                  // kExternal: of the overlay
  std::string source;                                  // kExternal: the overlay, as seen from ROOT
  DiskSourceType source_type = DiskSourceType::kFile;  // kExternal: kFile or kBlock
};

// What a list or a tree needs of a snapshot; cheap to keep for tens of thousands.
struct SnapshotSummary {
  std::string name;
  std::string parent;  // empty: a root
  std::string description;
  SnapshotState state = SnapshotState::kShutoff;
  int64_t creation_time = 0;  // seconds since the epoch
  bool current = false;       // <active>1</active>
  SnapshotMode memory = SnapshotMode::kNo;
  bool has_external_disk = false;
  bool safety = false;        // Varve made it to keep what a revert throws away (note "safety" = "yes")
  bool is_protected = false;  // note "protected" = "yes"
};

struct NewSnapshot {
  std::string name;
  std::string description;  // empty: none
  std::string parent;       // empty: a root
  int64_t creation_time = 0;
  SnapshotState state = SnapshotState::kShutoff;
  bool current = true;
  SnapshotMemory memory;
  // Disks whose mode differs from what libvirt would choose. kExternal needs format and source. Others get
  // `default_mode`, or kNo where Disk::in_snapshots_by_default() says so.
  std::vector<SnapshotDisk> disks;
  SnapshotMode default_mode = SnapshotMode::kInternal;
  std::map<std::string, std::string> notes;  // Varve's own
};

class SnapshotDocument {
 public:
  // Parses, and checks what everything else relies on: root element <domainsnapshot>, a usable <name>, a known <state>.
  // The inner domain may be missing (old libvirt) or poor; domain() says so when asked.
  static Result<SnapshotDocument> parse(std::string_view text, const std::string& document_name);
  static Result<SnapshotDocument> load(const std::string& path);
  // As libvirt 9.0 writes it for this domain. kNotFound: a disk of `spec` is not one of the domain; kInvalidArgument: a
  // bad name, an external disk without file.
  static Result<SnapshotDocument> create(const DomainDocument& definition, const NewSnapshot& spec);

  std::string name() const;
  std::string description() const;
  SnapshotState state() const;
  std::string parent() const;  // empty: a root
  int64_t creation_time() const;
  SnapshotMemory memory() const;
  std::vector<SnapshotDisk> disks() const;  // as written; empty in documents of old libvirt: every disk, internal
  const xml::Element* cookie() const;
  bool current() const;
  SnapshotSummary summary() const;

  // The definition of that time, indented as a document of its own, without Varve's notes. kNotFound: none recorded.
  Result<DomainDocument> domain() const;
  Result<std::optional<DomainDocument>> inactive_domain() const;

  Result<void> set_name(const std::string& name);
  void set_description(const std::string& description);  // empty: removes it
  void set_parent(const std::string& parent);            // empty: becomes a root
  void set_current(bool current);
  // From now on the snapshot is made of the other disks. kNotFound: no such disk.
  Result<void> leave_out_disk(const std::string& target);
  // Replaces the recorded definition, for a renamed or moved domain; the notes stay.
  void set_domain(const DomainDocument& definition);

  std::optional<std::string> note(const std::string& key) const;
  std::map<std::string, std::string> notes() const;
  // Keys are XML names ("safety", "protected", "nvram"). No value: removes it. Without an inner domain there is no
  // place for notes: kUnsupported.
  Result<void> set_note(const std::string& key, const std::optional<std::string>& value);

  // The file: libvirt's comment, the document with <active>. Unchanged since it was loaded: the very bytes.
  std::string to_file() const;
  // As `virsh snapshot-dumpxml` prints it: no comment, no <active>; what libvirtd takes with REDEFINE.
  std::string to_xml() const;

  const xml::Element& root() const { return document_.root(); }
  xml::Element& root() { return document_.root(); }

 private:
  static Result<SnapshotDocument> checked(xml::Document document);
  const xml::Element* own_notes() const;

  explicit SnapshotDocument(xml::Document document) : document_(std::move(document)) {}
  xml::Document document_;
};

}  // namespace varve
