#include "operation/metadata_edit.h"

#include <fmt/format.h>

namespace varve {

Result<MetadataEdit> MetadataEdit::begin(const MetadataStore& store, const std::string& domain) {
  MetadataEdit edit(store, domain);
  for (std::string& name : TRY(store.names(domain))) edit.names_.insert(std::move(name));
  MetadataStore::Listing listing = TRY(store.list(domain));
  for (Error& problem : listing.problems) {
    // What can't be understood is passed over, as libvirt does. What can't be read may be the current snapshot, or a
    // parent: changes would tear the tree.
    if (problem.kind == ErrorKind::kPermission || problem.kind == ErrorKind::kIo) return std::move(problem);
    edit.problems_.push_back(problem.message);
  }
  edit.tree_ = SnapshotTree(std::move(listing.snapshots));
  for (const std::string& problem : edit.tree_.problems()) edit.problems_.push_back(problem);
  return edit;
}

Result<SnapshotDocument*> MetadataEdit::edit(const std::string& name) {
  auto found = edited_.find(name);
  if (found == edited_.end()) {
    SnapshotDocument document = TRY(store_.load(domain_, name));
    originals_.emplace(name, document.to_file());
    found = edited_.emplace(name, std::move(document)).first;
  }
  return &found->second;
}

void MetadataEdit::add(SnapshotDocument snapshot) {
  const std::string name = snapshot.name();
  removed_.erase(name);
  edited_.insert_or_assign(name, std::move(snapshot));
}

Result<void> MetadataEdit::remove(const std::vector<std::string>& names) {
  const SnapshotTree::Deletion deletion = tree_.after_deleting(names);
  for (const std::string& name : names) {
    edited_.erase(name);
    removed_.insert(name);
  }
  for (const SnapshotTree::Relink& relink : deletion.relinks) {
    SnapshotDocument* child = TRY(edit(relink.child));
    child->set_parent(relink.new_parent);
  }
  if (deletion.current_changes) TRY(set_current(deletion.new_current));
  return {};
}

Result<void> MetadataEdit::rename(const std::string& name, const std::string& new_name) {
  for (const SnapshotSummary* child : tree_.children(name)) {
    SnapshotDocument* document = TRY(edit(child->name));
    document->set_parent(new_name);
  }
  SnapshotDocument renamed = *TRY(edit(name));
  TRY(renamed.set_name(new_name));
  edited_.erase(name);
  removed_.insert(name);
  add(std::move(renamed));
  return {};
}

Result<void> MetadataEdit::set_current(const std::string& name) {
  // Several may claim it where somebody has edited files; afterwards one does.
  for (const SnapshotSummary& snapshot : tree_.snapshots()) {
    if (!snapshot.current || snapshot.name == name || removed_.contains(snapshot.name)) continue;
    SnapshotDocument* document = TRY(edit(snapshot.name));
    document->set_current(false);
  }
  for (auto& [other, document] : edited_) {
    if (other != name && document.current()) document.set_current(false);
  }
  if (name.empty()) return {};
  SnapshotDocument* document = TRY(edit(name));
  document->set_current(true);
  return {};
}

std::vector<FileChange> MetadataEdit::changes() const {
  std::vector<FileChange> changes;
  std::set<std::string> seen;
  const std::function<void(const std::string&)> save = [&](const std::string& name) {
    const auto document = edited_.find(name);
    if (document == edited_.end() || !seen.insert(name).second) return;
    save(document->second.parent());
    changes.push_back(MetadataStore::saving(domain_, document->second));
  };
  for (const auto& [name, document] : edited_) save(name);
  for (const std::string& name : removed_) changes.push_back(MetadataStore::removing(domain_, name));
  return changes;
}

std::function<Result<void>()> MetadataEdit::still_valid() const {
  return [store = &store_, domain = domain_, names = names_, originals = originals_]() -> Result<void> {
    const auto changed = [&](const std::string& what) {
      return make_error(ErrorKind::kInUse,
                        fmt::format("somebody else has changed the snapshots of '{}' meanwhile: {}", domain, what))
          .with_note("look at them, then give the command again");
    };
    std::set<std::string> present;
    for (std::string& name : TRY(store->names(domain))) {
      if (!names.contains(name)) return changed(fmt::format("'{}' is new", name));
      present.insert(std::move(name));
    }
    for (const std::string& name : names) {
      if (!present.contains(name)) return changed(fmt::format("'{}' is gone", name));
    }
    for (const auto& [name, text] : originals) {
      if (TRY(store->load(domain, name)).to_file() != text) return changed(fmt::format("'{}' is another one", name));
    }
    return {};
  };
}

}  // namespace varve
