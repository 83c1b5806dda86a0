// Every file that a machine is made of: the images of its disks, of today and of all its snapshots, with everything
// below them; memory, firmware variables, the TPM's state. Whoever takes all of these and the documents has the machine
// whole.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "domain/snapshot_document.h"
#include "host/host.h"
#include "io/file_device.h"
#include "operation/preflight.h"
#include "store/journal_record.h"
#include "transfer/manifest.h"

namespace varve {

struct MachineFile {
  std::string path;       // a root path
  std::string host_path;  // resolved
  FileRole role = FileRole::kImage;
  bool is_removable = false;     // not a medium (cdrom, read-only disk): goes with the machine when it moves
  std::string backing;           // of an image: the root path of the one right below it; empty: none
  std::string recorded_backing;  // the same as the image records it
  uint64_t data_bytes = 0;       // without its holes
  FileStamp stamp;
  std::unique_ptr<FileDevice> file;  // open, so that nobody writes to it meanwhile
};

struct Inventory {
  std::vector<SnapshotDocument> snapshots;  // parents before their children
  std::vector<MachineFile> files;           // each once, sorted by path
  // Paths that documents name, where the file has another one: it has moved since.
  std::vector<std::pair<std::string, std::string>> aliases;
  std::vector<std::string> notes;  // what is not taken along
  bool has_memory_files = false;   // of snapshots: libvirt has written the definition of that time into them

  const MachineFile* find(const std::string& path) const;
};

// Refuses where the domain runs, or would go on with memory that was saved when it stopped.
void check_at_rest(const Host& host, const std::string& domain, Preflight& preflight);

// kInUse where somebody has written to the file since the inventory was taken.
Result<void> check_unchanged(const MachineFile& file);

// Of a domain that is shut off and locked. What is in the way (an image that is missing or in use, a disk that is no
// file) is told to `preflight`.
Result<Inventory> take_inventory(const Host& host, const DomainDocument& definition, Preflight& preflight);

}  // namespace varve
