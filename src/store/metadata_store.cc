#include "store/metadata_store.h"

#include <dirent.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "domain/names.h"
#include "store/xml_directory.h"

namespace varve {

namespace {

Result<SnapshotDocument> load_file(const XmlFile& file) {
  SnapshotDocument snapshot = TRY(SnapshotDocument::load(file.host_path));
  if (snapshot.name() != file.name) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("{} describes a snapshot of another name, '{}'",
                                                              file.host_path, snapshot.name()));
    error.path = file.host_path;
    return error;
  }
  return snapshot;
}

}  // namespace

Result<std::vector<std::string>> MetadataFiles::names(const std::string& domain) const {
  std::vector<std::string> names;
  if (!is_file_name(domain)) TRY(check_domain_name(domain));
  for (XmlFile& file : TRY(xml_files_in(layout_, Layout::snapshots_directory(domain)))) {
    names.push_back(std::move(file.name));
  }
  return names;
}

Result<std::vector<std::string>> MetadataFiles::domains() const {
  std::vector<std::string> domains;
  auto directory = layout_.resolve(Layout::snapshots_directory());
  if (!directory) {
    if (directory.error().kind == ErrorKind::kNotFound) return domains;
    return std::move(directory).error();
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(directory->c_str()), &::closedir);
  if (!open) return system_error(errno, "reading the directory " + *directory, *directory);
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(open.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (!is_file_name(name) || (entry->d_type != DT_DIR && entry->d_type != DT_LNK && entry->d_type != DT_UNKNOWN)) {
      continue;
    }
    const auto snapshots = xml_files_in(layout_, Layout::snapshots_directory(name));
    if (snapshots && !snapshots->empty()) domains.push_back(name);
  }
  if (errno != 0) return system_error(errno, "reading the directory " + *directory, *directory);
  std::sort(domains.begin(), domains.end());
  return domains;
}

Result<MetadataStore::Listing> MetadataFiles::list(const std::string& domain) const {
  Listing listing;
  if (!is_file_name(domain)) TRY(check_domain_name(domain));
  for (const XmlFile& file : TRY(xml_files_in(layout_, Layout::snapshots_directory(domain)))) {
    auto snapshot = load_file(file);
    if (snapshot) {
      listing.snapshots.push_back(snapshot->summary());
    } else {
      listing.problems.push_back(std::move(snapshot).error());
    }
  }
  return listing;
}

Result<bool> MetadataFiles::exists(const std::string& domain, const std::string& name) const {
  if (!is_file_name(domain) || !is_file_name(name)) return false;
  const auto path = layout_.resolve(Layout::snapshot(domain, name));
  if (path) return true;
  if (path.error().kind == ErrorKind::kNotFound) return false;
  return path.error();
}

Result<SnapshotDocument> MetadataFiles::load(const std::string& domain, const std::string& name) const {
  if (!is_file_name(domain)) TRY(check_domain_name(domain));  // says what is wrong with it
  if (!is_file_name(name)) TRY(check_snapshot_name(name));
  const auto path = layout_.resolve(Layout::snapshot(domain, name));
  if (path) return load_file({name, *path});
  if (path.error().kind != ErrorKind::kNotFound) return path.error();
  Error error = make_error(ErrorKind::kNotFound, fmt::format("'{}' has no snapshot '{}'", domain, name));
  error.path = layout_.shown(Layout::snapshot(domain, name));
  if (const auto others = names(domain)) error.notes.push_back(there_are(*others));
  return error;
}

Result<MetadataStore::Overview> MetadataStore::overview(const std::string& domain) const {
  const SnapshotTree tree(TRY(list(domain)).snapshots);
  const SnapshotSummary* current = tree.current();
  return Overview{.count = tree.size(), .current = current == nullptr ? "" : current->name};
}

Result<MetadataStore::Offspring> MetadataStore::offspring(const std::string& domain, const std::string& name) const {
  const SnapshotTree tree(TRY(list(domain)).snapshots);
  Offspring offspring{.children = {}, .descendants = tree.descendants(name).size()};
  for (const SnapshotSummary* child : tree.children(name)) offspring.children.push_back(child->name);
  return offspring;
}

FileChange MetadataStore::saving(const std::string& domain, const SnapshotDocument& snapshot) {
  return {Layout::snapshot(domain, snapshot.name()), snapshot.to_file()};
}

FileChange MetadataStore::removing(const std::string& domain, const std::string& name) {
  return {Layout::snapshot(domain, name), std::nullopt};
}

}  // namespace varve
