// A domain's definition: libvirt's domain XML, read and lightly edited. What is asked for is parsed at the call, what
// is not understood is kept byte for byte (xml.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "domain/xml.h"

namespace varve {

enum class DiskDevice : uint8_t { kDisk, kCdrom, kFloppy, kLun };
enum class DiskSourceType : uint8_t { kFile, kBlock, kDir, kNetwork, kVolume, kNvme, kVhostUser, kVhostVdpa, kOther };

// How a disk's point is kept, in libvirt's words. kDefault: not said.
enum class SnapshotMode : uint8_t { kDefault, kNo, kInternal, kExternal, kManual };

const char* name_of(DiskDevice device);    // "disk"
const char* name_of(DiskSourceType type);  // "file"; "other" for kOther
const char* name_of(SnapshotMode mode);    // "internal"; "default" for kDefault
std::optional<SnapshotMode> snapshot_mode_from(std::string_view name);

// One <disk>, as the definition has it.
struct Disk {
  DiskDevice device = DiskDevice::kDisk;
  std::string target;  // "vda"
  std::string bus;     // "virtio"; empty: not said
  DiskSourceType source_type = DiskSourceType::kFile;
  std::string source;  // kFile, kBlock, kDir: path as seen from ROOT; network: "rbd:pool/image"; volume:
                       // "pool/volume"; empty: no medium
  std::string format;  // driver type: "qcow2", "raw"; empty: not recorded
  bool readonly = false;
  bool shareable = false;
  bool transient = false;
  SnapshotMode snapshot = SnapshotMode::kDefault;  // the disk's own snapshot attribute
  std::string serial;
  std::vector<std::string> backing_files;  // <backingStore> files as recorded, nearest first; usually empty
  int line = 0;

  bool is_local_file() const { return source_type == DiskSourceType::kFile || source_type == DiskSourceType::kBlock; }
  // What libvirt does where nobody says otherwise: read-only disks, cdroms, floppies without a writable medium and
  // empty drives are left out of a snapshot, and so is snapshot='no'.
  bool in_snapshots_by_default() const;
};

struct NewDisk {
  std::string source;  // path as seen from ROOT
  std::string format = "qcow2";
};

struct NewDomain {
  std::string name;
  std::string uuid;  // see new_uuid()
  uint64_t memory_bytes = uint64_t{1} << 30;
  unsigned vcpus = 1;
  std::string type = "kvm";  // "kvm" or "qemu"
  std::string machine = "q35";
  std::vector<NewDisk> disks;  // vda, vdb, …
};

// A random version 4 UUID in libvirt's spelling.
std::string new_uuid();

class DomainDocument {
 public:
  // Parses, and checks what everything else relies on: root element <domain>, a <name> that is a usable name, disks
  // with distinct targets. Schema validation is a separate question (schema.h).
  static Result<DomainDocument> parse(std::string_view text, const std::string& document_name);
  static Result<DomainDocument> load(const std::string& path);
  static Result<DomainDocument> from_element(xml::Element domain, const std::string& document_name);
  // A definition that libvirt accepts as it is. kInvalidArgument: a bad name, more than 26 * 27 disks.
  static Result<DomainDocument> create(const NewDomain& spec);

  std::string name() const;
  std::string uuid() const;  // empty: not said (libvirt makes one up on define)
  std::string title() const;
  std::string description() const;
  std::string type() const;     // "kvm"
  std::string machine() const;  // "pc-q35-7.2"; empty: not said
  std::string arch() const;
  std::optional<uint64_t> memory_bytes() const;
  unsigned vcpus() const;                         // 1 when not said
  bool firmware_is_uefi() const;                  // <os firmware='efi'> or a pflash <loader>
  std::optional<std::string> nvram_path() const;  // as seen from ROOT
  const std::vector<Disk>& disks() const { return disks_; }
  const Disk* disk(std::string_view target) const;

  Result<void> set_name(const std::string& name);
  void set_uuid(const std::string& uuid);
  // kNotFound: no such target. kUnsupported: the source is not a path (network, volume).
  Result<void> set_disk_source(std::string_view target, const std::string& path);
  void set_nvram_path(const std::string& path);  // only where there is an <nvram>

  // The definition alone, from "<domain" on, with a newline at the end: what `virsh dumpxml` would print.
  std::string to_xml() const;
  // The file in etc/libvirt/qemu: libvirt's comment first. A document loaded from a file and not changed since gives
  // that file's bytes.
  std::string to_file() const;

  const xml::Element& root() const { return document_.root(); }
  // After a change through this, disks() is not up to date until refresh().
  xml::Element& root() { return document_.root(); }
  Result<void> refresh();

 private:
  explicit DomainDocument(xml::Document document) : document_(std::move(document)) {}
  xml::Document document_;
  std::vector<Disk> disks_;
};

}  // namespace varve
