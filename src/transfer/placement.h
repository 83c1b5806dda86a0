// Where each file of a machine goes on the host that receives it, what that host's file systems have against it, and
// the machine's documents with the new paths.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "host/host.h"
#include "operation/preflight.h"
#include "transfer/inventory.h"
#include "transfer/transfer_state.h"

namespace varve {

struct PlacedFile {
  const MachineFile* file = nullptr;
  std::string path;          // a root path of the receiving host
  std::string backing_name;  // what the copy has to record as its backing file; empty: what it records already
};

struct Placement {
  std::vector<PlacedFile> files;             // that are copied, in the inventory's order
  std::map<std::string, std::string> moved;  // from paths in documents to their successors
};

// Files keep their paths, as seen from their host's root; `images_directory`, a root path, takes images and memory
// where it is not empty, and so does the host's own where a path's directory is not there on a host that is the whole
// machine. `stays` says which files are not copied.
Placement place(const Inventory& inventory, const Host& target, const std::string& images_directory,
                const std::function<bool(const MachineFile&)>& stays);

// Everything at its path, for a tree of its own.
Placement place_in_archive(const Inventory& inventory);

// Refuses what is there already (unless `state` knows it for this transfer's own), what the file system can't hold, and
// where there is too little space. Files that `state` has are not counted again.
void check_place(const Placement& placement, const std::vector<FileChange>& documents, const Host& target,
                 const TransferState& state, Preflight& preflight);

// The temporary name of a copy.
std::string part_path(const std::string& path);

// Whether the file at this root path is the one that was copied there.
bool is_copied_file(const Layout& layout, const std::string& root_path, const TransferredFile& copied);

// The documents as the receiving host gets them.
struct MovedDocuments {
  DomainDocument definition;
  std::vector<SnapshotDocument> snapshots;
};
Result<MovedDocuments> move_documents(const DomainDocument& definition, const Inventory& inventory,
                                      const Placement& placement);

}  // namespace varve
