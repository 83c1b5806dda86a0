// The metadata documents of one domain while an operation changes them: each is read once, changed in memory as often
// as needed, and handed to the journal as one file change.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/snapshot_document.h"
#include "domain/snapshot_tree.h"
#include "store/metadata_store.h"

namespace varve {

class MetadataEdit {
 public:
  // Documents that can't be understood are passed over (problems()); one that can't be read is an error.
  static Result<MetadataEdit> begin(const MetadataStore& store, const std::string& domain);

  // As it was at the beginning.
  const SnapshotTree& tree() const { return tree_; }
  // What is wrong with the metadata: files that can't be read, bad parents. One line each.
  const std::vector<std::string>& problems() const { return problems_; }
  // Whether a file of that name is there, readable or not.
  bool has(const std::string& name) const { return names_.contains(name); }

  // The document, to be changed; kNotFound names those that there are. Valid until it is removed or renamed.
  Result<SnapshotDocument*> edit(const std::string& name);
  void add(SnapshotDocument snapshot);
  // The snapshots go; their surviving children get the nearest surviving ancestor, and so does "current".
  Result<void> remove(const std::vector<std::string>& names);
  // Its children follow.
  Result<void> rename(const std::string& name, const std::string& new_name);
  // Empty: none is current.
  Result<void> set_current(const std::string& name);

  // New and changed files first, parents before their children, then those that go.
  std::vector<FileChange> changes() const;

  // Asks, as often as it is called, whether what this edit builds upon is still so: the same snapshots are there, and
  // those that it changes are as they were read. kInUse: somebody else has changed them. Outlives this object, not the
  // store.
  std::function<Result<void>()> still_valid() const;

 private:
  MetadataEdit(const MetadataStore& store, std::string domain) : store_(store), domain_(std::move(domain)) {}

  const MetadataStore& store_;
  std::string domain_;
  SnapshotTree tree_;
  std::vector<std::string> problems_;
  std::set<std::string> names_;
  std::map<std::string, SnapshotDocument> edited_;
  std::map<std::string, std::string> originals_;  // the text of what was loaded
  std::set<std::string> removed_;
};

}  // namespace varve
