// Snapshot metadata below ROOT: var/lib/libvirt/qemu/snapshot/DOMAIN/NAME.xml. Reads files; changes are handed out as
// FileChanges, which the journal collects, or written at once by save() and remove(). The caller holds the domain lock.
// A file that cannot be understood is reported and left alone.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "domain/snapshot_document.h"
#include "domain/snapshot_tree.h"
#include "store/file_change.h"
#include "store/layout.h"

namespace varve {

class MetadataStore {
 public:
  explicit MetadataStore(Layout layout) : layout_(std::move(layout)) {}

  // The names of a domain's snapshots, sorted, from file names alone. No directory: none.
  Result<std::vector<std::string>> names(const std::string& domain) const;
  // Domains that have a snapshot directory with something in it, whether or not they are defined; sorted.
  Result<std::vector<std::string>> domains() const;

  struct Listing {
    std::vector<SnapshotSummary> snapshots;  // sorted by name
    std::vector<Error> problems;             // unreadable, unparsable, or named otherwise than their file
  };
  // Reads every document once and keeps only summaries.
  Result<Listing> list(const std::string& domain) const;

  // kNotFound: no such snapshot; the notes say which there are. A file whose <name> is another one is kCorrupt.
  Result<SnapshotDocument> load(const std::string& domain, const std::string& name) const;
  Result<bool> exists(const std::string& domain, const std::string& name) const;

  FileChange saving(const std::string& domain, const SnapshotDocument& snapshot) const;
  FileChange removing(const std::string& domain, const std::string& name) const;
  Result<void> save(const std::string& domain, const SnapshotDocument& snapshot) const {
    return apply(layout_, saving(domain, snapshot));
  }
  Result<void> remove(const std::string& domain, const std::string& name) const {
    return apply(layout_, removing(domain, name));
  }

 private:
  Layout layout_;
};

}  // namespace varve
