// The snapshot metadata of a host's domains. Reads; changes are handed out as FileChanges, which the journal collects
// and a DocumentWriter makes true. The caller holds the domain lock.
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
  virtual ~MetadataStore() = default;

  // The names of a domain's snapshots, sorted.
  virtual Result<std::vector<std::string>> names(const std::string& domain) const = 0;
  // Domains that have snapshots, whether or not they are defined; sorted.
  virtual Result<std::vector<std::string>> domains() const = 0;

  struct Listing {
    std::vector<SnapshotSummary> snapshots;  // sorted by name
    std::vector<Error> problems;             // unreadable, unparsable, or named otherwise than their file
  };
  // Reads every document once and keeps only summaries.
  virtual Result<Listing> list(const std::string& domain) const = 0;

  // Parts of what list() tells, for stores that have them at hand.
  struct Overview {
    size_t count = 0;
    std::string current;  // empty: none
  };
  virtual Result<Overview> overview(const std::string& domain) const;
  struct Offspring {
    std::vector<std::string> children;  // sorted by name
    size_t descendants = 0;             // children among them
  };
  virtual Result<Offspring> offspring(const std::string& domain, const std::string& name) const;

  // kNotFound: no such snapshot; the notes say which there are.
  virtual Result<SnapshotDocument> load(const std::string& domain, const std::string& name) const = 0;
  virtual Result<bool> exists(const std::string& domain, const std::string& name) const = 0;

  static FileChange saving(const std::string& domain, const SnapshotDocument& snapshot);
  static FileChange removing(const std::string& domain, const std::string& name);
};

// The files below ROOT: var/lib/libvirt/qemu/snapshot/DOMAIN/NAME.xml. One that cannot be understood is reported and
// left alone.
class MetadataFiles final : public MetadataStore {
 public:
  explicit MetadataFiles(Layout layout) : layout_(std::move(layout)) {}

  // From file names alone. No directory: none.
  Result<std::vector<std::string>> names(const std::string& domain) const override;
  // Those that have a directory with something in it.
  Result<std::vector<std::string>> domains() const override;
  Result<Listing> list(const std::string& domain) const override;
  // A file whose <name> is another one is kCorrupt.
  Result<SnapshotDocument> load(const std::string& domain, const std::string& name) const override;
  Result<bool> exists(const std::string& domain, const std::string& name) const override;

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
