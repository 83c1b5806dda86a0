#include "libvirt/stores.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <optional>
#include <string_view>

#include "domain/names.h"

namespace varve::libvirt {

namespace {

constexpr std::string_view kSuffix = ".xml";
constexpr size_t kAskers = 4;  // threads

Result<DomainDocument> definition_from(const Connection& connection, const DomainHandle& domain) {
  const std::string name = connection.library().virDomainGetName(domain.get());
  return DomainDocument::parse(TRY(connection.definition_of(domain)), fmt::format("the definition of '{}'", name));
}

Result<SnapshotDocument> document_from(const Connection& connection, const SnapshotHandle& snapshot,
                                       const std::string& current) {
  const std::string name = connection.library().virDomainSnapshotGetName(snapshot.get());
  SnapshotDocument document = TRY(SnapshotDocument::parse(TRY(connection.document_of(snapshot)),
                                                          fmt::format("the metadata of snapshot '{}'", name)));
  document.set_current(name == current);
  return document;
}

// Nothing where there is no such domain.
Result<std::optional<DomainHandle>> find(const Connection& connection, const std::string& domain) {
  auto found = connection.domain(domain);
  if (found) return std::optional<DomainHandle>(std::move(*found));
  if (found.error().kind == ErrorKind::kNotFound) return std::optional<DomainHandle>();
  return std::move(found).error();
}

// What stands between a directory and ".xml" in a root path; nothing where it is another path.
std::optional<std::string> name_below(const std::string& directory, std::string_view root_path) {
  if (!root_path.starts_with(directory + "/") || !root_path.ends_with(kSuffix)) return std::nullopt;
  root_path.remove_prefix(directory.size() + 1);
  root_path.remove_suffix(kSuffix.size());
  if (root_path.empty()) return std::nullopt;
  return std::string(root_path);
}

struct DocumentName {
  std::string domain;
  std::optional<std::string> snapshot;  // nothing: it is the definition
};

// Nothing where it is no document of a libvirtd.
std::optional<DocumentName> document_at(const std::string& root_path) {
  if (const auto name = name_below(Layout::definitions_directory(), root_path);
      name && name->find('/') == std::string::npos) {
    return DocumentName{*name, std::nullopt};
  }
  const auto below = name_below(Layout::snapshots_directory(), root_path);
  const size_t slash = below ? below->find('/') : std::string::npos;
  if (slash == std::string::npos || below->find('/', slash + 1) != std::string::npos) return std::nullopt;
  return DocumentName{below->substr(0, slash), below->substr(slash + 1)};
}

}  // namespace

Result<std::vector<std::string>> Definitions::names() const {
  std::vector<std::string> names;
  for (const DomainHandle& domain : TRY(connection_.domains())) {
    names.emplace_back(connection_.library().virDomainGetName(domain.get()));
  }
  return names;
}

Result<DefinitionStore::Listing> Definitions::list() const {
  Listing listing;
  for (const DomainHandle& domain : TRY(connection_.domains())) {
    auto definition = definition_from(connection_, domain);
    if (definition) {
      listing.domains.push_back(*std::move(definition));
    } else if (definition.error().kind != ErrorKind::kNotFound) {  // gone since the list was made
      listing.problems.push_back(std::move(definition).error());
    }
  }
  return listing;
}

Result<bool> Definitions::exists(const std::string& name) const {
  return TRY(find(connection_, name)).has_value();
}

Result<DomainDocument> Definitions::load(const std::string& name) const {
  const auto domain = TRY(find(connection_, name));
  if (domain) return definition_from(connection_, *domain);
  Error error = make_error(ErrorKind::kNotFound, fmt::format("{} has no domain '{}'", connection_.uri(), name));
  if (const auto others = names()) error.notes.push_back(there_are(*others));
  return error;
}

Result<std::vector<std::string>> Metadata::names(const std::string& domain) const {
  std::vector<std::string> names;
  const auto found = TRY(find(connection_, domain));
  if (!found) return names;
  for (const SnapshotHandle& snapshot : TRY(connection_.snapshots(*found))) {
    names.emplace_back(connection_.library().virDomainSnapshotGetName(snapshot.get()));
  }
  return names;
}

Result<std::vector<std::string>> Metadata::domains() const {
  std::vector<std::string> domains;
  const Library& library = connection_.library();
  for (const DomainHandle& domain : TRY(connection_.domains())) {
    if (library.virDomainSnapshotNum(domain.get(), 0) > 0) domains.emplace_back(library.virDomainGetName(domain.get()));
  }
  return domains;
}

Result<MetadataStore::Listing> Metadata::list(const std::string& domain) const {
  Listing listing;
  const auto found = TRY(find(connection_, domain));
  if (!found) return listing;
  const std::string current = TRY(connection_.current_snapshot(*found));
  const std::vector<SnapshotHandle> snapshots = TRY(connection_.snapshots(*found));
  // Every document is a question of its own. Several are under way at once, so that the libvirtd makes one while
  // another is taken apart here; libvirt's calls may come from any thread.
  std::vector<std::optional<Result<SnapshotSummary>>> summaries(snapshots.size());
  const auto ask = [&](size_t first) {
    for (size_t i = first; i < snapshots.size(); i += kAskers) {
      const auto document = document_from(connection_, snapshots[i], current);
      summaries[i] =
          document ? Result<SnapshotSummary>(document->summary()) : Result<SnapshotSummary>(document.error());
    }
  };
  {
    std::vector<std::future<void>> askers;
    for (size_t i = 1; i < std::min(kAskers, snapshots.size()); ++i) {
      askers.push_back(std::async(std::launch::async, ask, i));
    }
    ask(0);
    for (std::future<void>& asker : askers) asker.get();
  }
  for (std::optional<Result<SnapshotSummary>>& summary : summaries) {
    if (*summary) {
      listing.snapshots.push_back(**std::move(summary));
    } else if (summary->error().kind != ErrorKind::kNotFound) {
      listing.problems.push_back(std::move(*summary).error());
    }
  }
  return listing;
}

Result<MetadataStore::Overview> Metadata::overview(const std::string& domain) const {
  Overview overview;
  const auto found = TRY(find(connection_, domain));
  if (!found) return overview;
  const int count = connection_.library().virDomainSnapshotNum(found->get(), 0);
  if (count < 0) return connection_.last_error(fmt::format("the snapshots of '{}' can't be counted", domain));
  overview.count = static_cast<size_t>(count);
  overview.current = TRY(connection_.current_snapshot(*found));
  return overview;
}

Result<MetadataStore::Offspring> Metadata::offspring(const std::string& domain, const std::string& name) const {
  const DomainHandle found = TRY(connection_.domain(domain));
  const SnapshotHandle snapshot = TRY(connection_.snapshot(found, name));
  Offspring offspring;
  for (const SnapshotHandle& child : TRY(connection_.children(snapshot))) {
    offspring.children.emplace_back(connection_.library().virDomainSnapshotGetName(child.get()));
  }
  const int count =
      connection_.library().virDomainSnapshotNumChildren(snapshot.get(), VIR_DOMAIN_SNAPSHOT_LIST_DESCENDANTS);
  if (count < 0) return connection_.last_error(fmt::format("the descendants of '{}' can't be counted", name));
  offspring.descendants = static_cast<size_t>(count);
  return offspring;
}

Result<bool> Metadata::exists(const std::string& domain, const std::string& name) const {
  const auto loaded = load(domain, name);
  if (loaded) return true;
  if (loaded.error().kind == ErrorKind::kNotFound) return false;
  return loaded.error();
}

Result<SnapshotDocument> Metadata::load(const std::string& domain, const std::string& name) const {
  const auto found = TRY(find(connection_, domain));
  if (found) {
    const auto snapshot = connection_.snapshot(*found, name);
    if (snapshot) return document_from(connection_, *snapshot, TRY(connection_.current_snapshot(*found)));
    if (snapshot.error().kind != ErrorKind::kNotFound) return snapshot.error();
  }
  Error error = make_error(ErrorKind::kNotFound, fmt::format("'{}' has no snapshot '{}'", domain, name));
  if (const auto others = names(domain)) error.notes.push_back(there_are(*others));
  return error;
}

bool Writer::writes_file(const std::string& root_path) const {
  return !root_path.starts_with(Layout::definitions_directory() + "/") &&
         !root_path.starts_with(Layout::snapshots_directory() + "/");
}

Result<void> Writer::write(const FileChange& change) {
  if (const auto document = document_at(change.path)) {
    return document->snapshot ? write_metadata(document->domain, *document->snapshot, change)
                              : write_definition(document->domain, change);
  }
  if (writes_file(change.path)) return apply(layout_, change);
  return make_error(ErrorKind::kRefused, fmt::format("{} is a file of libvirtd's own", change.path))
      .with_note("stop libvirtd and give the command again with -c dir:/");
}

Result<void> Writer::write_definition(const std::string& domain, const FileChange& change) const {
  const Library& library = connection_.library();
  if (change.contents) {
    const DomainHandle defined(library.virDomainDefineXML(connection_.handle(), change.contents->c_str()),
                               library.virDomainFree);
    if (defined) return {};
    return connection_.refusal(fmt::format("'{}' can't be defined", domain));
  }
  const auto found = TRY(find(connection_, domain));
  if (!found) return {};
  unsigned flags = VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
  constexpr unsigned long kFirstThatKeepsTpm = 8009000;
  if (TRY(connection_.version()) >= kFirstThatKeepsTpm) flags |= VIR_DOMAIN_UNDEFINE_KEEP_TPM;
  if (library.virDomainUndefineFlags(found->get(), flags) == 0) return {};
  return connection_.refusal(fmt::format("'{}' can't be undefined", domain));
}

Result<void> Writer::write_metadata(const std::string& domain, const std::string& name,
                                    const FileChange& change) const {
  const Library& library = connection_.library();
  const auto found = TRY(find(connection_, domain));
  if (!found) {
    if (!change.contents) return {};
    return make_error(ErrorKind::kRefused,
                      fmt::format("snapshot '{}' has no domain '{}' any more to belong to", name, domain));
  }
  if (!change.contents) {
    const auto snapshot = connection_.snapshot(*found, name);
    if (!snapshot && snapshot.error().kind == ErrorKind::kNotFound) return {};
    if (!snapshot) return snapshot.error();
    if (library.virDomainSnapshotDelete(snapshot->get(), VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY) == 0) return {};
    return connection_.refusal(fmt::format("the metadata of snapshot '{}' can't be removed", name));
  }
  const SnapshotDocument document =
      TRY(SnapshotDocument::parse(*change.contents, fmt::format("the metadata of snapshot '{}'", name)));
  // Which one is current changes with the new current one; libvirt has no word for one that ceases to be.
  if (!document.current()) {
    const auto present = connection_.snapshot(*found, name);
    if (present && TRY(document_from(connection_, *present, "")).to_xml() == document.to_xml()) return {};
  }
  const unsigned flags = VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE |
                         (document.current() ? static_cast<unsigned>(VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT) : 0U);
  const SnapshotHandle made(library.virDomainSnapshotCreateXML(found->get(), document.to_xml().c_str(), flags),
                            library.virDomainSnapshotFree);
  if (made) return {};
  return connection_.refusal(fmt::format("the metadata of snapshot '{}' can't be written", name));
}

}  // namespace varve::libvirt
