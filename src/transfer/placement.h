// Where each file of a machine goes on the host that receives it, what that host's file systems have against it, and
// the machine's documents with the new paths.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "host/host.h"
#include "host/image_needs.h"
#include "operation/plan.h"
#include "operation/preflight.h"
#include "transfer/inventory.h"
#include "transfer/transfer_state.h"

namespace varve {

struct PlacedFile {
  const MachineFile* file = nullptr;
  std::string path;          // a root path of the receiving host
  std::string backing_name;  // what the copy has to record as its backing file; empty: what it records already
  bool is_renamed = false;   // rather than copied: it takes no space
};

struct Placement {
  std::vector<PlacedFile> files;             // that are copied, in the inventory's order
  std::map<std::string, std::string> moved;  // from paths in documents to their successors
};

// Files keep their paths, as seen from their host's root; `images_directory`, a root path, takes images and memory
// where it is not empty. In a tree that is a whole machine only what is in libvirt's directories keeps its path, and
// everything else goes to the host's images. `stays` says which files are not copied.
Placement place(const Inventory& inventory, const Host& target, const std::string& images_directory,
                const std::function<bool(const MachineFile&)>& stays);

// Paths of the files that stay where they are when the machine's images move to another directory of its host: what is
// not its alone, and what these stand on, since they record where that is. `needed`: by other domains. The plan gets
// notes of those that one would miss.
std::set<std::string> files_that_stay(const Inventory& inventory, const std::string& images_directory,
                                      const std::map<std::string, ImageNeed>& needed, Plan& plan);

// Everything at its path, for a tree of its own.
Placement place_in_archive(const Inventory& inventory);

// Refuses what is there already (unless `state` knows it for this transfer's own), what the file system can't hold, and
// where there is too little space. Files that `state` has are not counted again.
void check_place(const Placement& placement, const std::vector<FileChange>& documents, const Host& target,
                 const TransferState& state, Preflight& preflight);

// Refuses where a domain of the receiving host needs a file that is there: an earlier attempt gave a copy its name, and
// it is another machine's by now.
Result<void> check_not_needed(const Placement& placement, const Host& target, Preflight& preflight);

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
