#include "inspect/verify_metadata.h"

#include <fmt/format.h>

#include <algorithm>

#include "domain/names.h"
#include "store/xml_directory.h"

namespace varve {

namespace {

class Examiner {
 public:
  Examiner(const Host& host, const std::string& domain, std::vector<Finding>& findings)
      : host_(host), domain_(domain), findings_(findings) {}

  void report(FindingKind kind, Severity severity, const std::string& snapshot, std::string message, std::string remedy,
              bool is_repairable) {
    Finding finding;
    finding.kind = kind;
    finding.severity = severity;
    finding.domain = domain_;
    finding.snapshot = snapshot;
    finding.path = Layout::snapshot(domain_, snapshot);
    finding.message = std::move(message);
    finding.remedy = std::move(remedy);
    finding.is_repairable = is_repairable;
    findings_.push_back(std::move(finding));
  }

  void report_unreadable(const std::string& name, const Error& error) {
    // Of a file that could not be looked at, nothing is known.
    const bool is_forbidden = error.kind == ErrorKind::kPermission || error.kind == ErrorKind::kIo;
    const bool is_unknown = is_forbidden || error.kind == ErrorKind::kUnsupported;
    const char* remedy =
        "mend the file by hand; or `--repair` keeps it aside, and what the images hold under that "
        "name can then be adopted";
    if (is_unknown) remedy = "look again once what is missing is installed";
    if (is_forbidden) remedy = "look again as a user who may read it";
    report(FindingKind::kUnreadableMetadata, is_unknown ? Severity::kUnknown : Severity::kError, name,
           fmt::format("its metadata can't be understood: {}", error.message), remedy, !is_unknown);
  }

  void report_misnamed(const std::string& file, const std::string& name, bool is_free) {
    report(FindingKind::kMisnamedMetadata, Severity::kError, file,
           fmt::format("{} describes a snapshot of another name, '{}'",
                       host_.layout().shown(Layout::snapshot(domain_, file)), name),
           is_free ? fmt::format("rename the file to '{}.xml'", name)
                   : "there is a file of that name too: decide which of the two to keep",
           is_free);
  }

  void report_interrupted_merge(const SnapshotDocument& snapshot) {
    const xml::Element* disks = snapshot.root().child("disks");
    if (disks == nullptr) return;
    std::vector<std::string> targets;
    for (const xml::Element* disk : disks->children("disk")) {
      if (disk->child("snapshotDeleteInProgress") != nullptr) targets.push_back(disk->attribute("name").value_or(""));
    }
    if (targets.empty()) return;
    report(
        FindingKind::kInterruptedMerge, Severity::kError, snapshot.name(),
        fmt::format("libvirt was interrupted while it merged something into its disk{} {}: its point there may be "
                    "half of the one and half of the other",
                    targets.size() == 1 ? "" : "s", fmt::format("{}", fmt::join(targets, ", "))),
        fmt::format("`virsh snapshot-delete '{}'` of the snapshot that was being deleted, on a libvirt that can go on "
                    "with it; do not revert to this one",
                    domain_),
        false);
    findings_.back().disks = std::move(targets);
  }

  // `problem`: why it can't be understood; empty: it can.
  void report_unloaded(const std::string& name, const std::string& problem) {
    report(problem.empty() ? FindingKind::kUnloadedMetadata : FindingKind::kUnreadableMetadata, Severity::kError, name,
           problem.empty() ? "its file is there, and the libvirtd that runs does not know it"
                           : fmt::format("the libvirtd that runs did not load its file: {}", problem),
           problem.empty() ? fmt::format("`varve vm recover '{}'` gives it to libvirtd", domain_)
                           : "stop libvirtd, then `varve -c dir:/ verify --repair` keeps the file aside",
           false);
  }

  // `claimed`: whose file is there, understood or not. A parent that can't be read now is not a missing one.
  void report_tree(const std::vector<SnapshotSummary>& summaries, const std::set<std::string>& claimed) {
    const SnapshotTree tree(summaries);
    std::vector<std::string> current;
    for (const SnapshotSummary& snapshot : tree.snapshots()) {
      if (snapshot.current) current.push_back(snapshot.name);
      if (snapshot.parent.empty() || tree.parent(snapshot.name) != nullptr) continue;
      if (claimed.contains(snapshot.parent) && tree.find(snapshot.parent) == nullptr) continue;  // reported already
      if (tree.find(snapshot.parent) == nullptr) {
        report(FindingKind::kMissingParent, Severity::kWarning, snapshot.name,
               fmt::format("it names a parent '{}' that does not exist", snapshot.parent),
               "`--repair` makes it a root, which it is taken for already", true);
      } else {
        report(FindingKind::kParentCircle, Severity::kWarning, snapshot.name,
               fmt::format("it is its own ancestor through its parent '{}'", snapshot.parent),
               "`--repair` makes it a root, which it is taken for already", true);
      }
    }
    if (current.size() < 2) return;
    report(FindingKind::kSeveralCurrent, Severity::kWarning, tree.current()->name,
           fmt::format("{} snapshots are marked as current: {}", current.size(), fmt::join(current, ", ")),
           fmt::format("`--repair` leaves the mark to '{}', which counts already", tree.current()->name), true);
  }

 private:
  const Host& host_;
  const std::string& domain_;
  std::vector<Finding>& findings_;
};

}  // namespace

namespace {

// What a daemon has; and what lies in its directory, which it did not load.
Result<ExaminedMetadata> examine_loaded_metadata(const Host& host, const std::string& domain,
                                                 const std::function<void(const SnapshotDocument&)>& each,
                                                 std::vector<Finding>& findings) {
  ExaminedMetadata result;
  Examiner examiner(host, domain, findings);
  std::vector<SnapshotSummary> summaries;
  for (const std::string& name : TRY(host.metadata().names(domain))) {
    result.claimed.insert(name);
    const auto document = host.metadata().load(domain, name);
    if (!document) {
      examiner.report_unreadable(name, document.error());
      continue;
    }
    summaries.push_back(document->summary());
    examiner.report_interrupted_merge(*document);
    each(*document);
  }
  result.files = result.claimed.size();
  examiner.report_tree(summaries, result.claimed);
  // Who may not read the directory is told nothing of it.
  const auto files = xml_files_in(host.layout(), Layout::snapshots_directory(domain));
  if (!files) return result;
  for (const XmlFile& file : *files) {
    if (result.claimed.contains(file.name)) continue;
    const auto document = SnapshotDocument::load(file.host_path);
    examiner.report_unloaded(file.name, document ? "" : document.error().message);
    if (document) result.claimed.insert(document->name());
  }
  return result;
}

}  // namespace

Result<ExaminedMetadata> examine_metadata(const Host& host, const std::string& domain,
                                          const std::function<void(const SnapshotDocument&)>& each,
                                          std::vector<Finding>& findings) {
  if (host.machines() != nullptr) return examine_loaded_metadata(host, domain, each, findings);
  const std::vector<XmlFile> files = TRY(xml_files_in(host.layout(), Layout::snapshots_directory(domain)));
  ExaminedMetadata result;
  result.files = files.size();
  for (const XmlFile& file : files) result.claimed.insert(file.name);
  Examiner examiner(host, domain, findings);
  std::vector<SnapshotSummary> summaries;
  for (const XmlFile& file : files) {
    const auto document = SnapshotDocument::load(file.host_path);
    if (!document) {
      examiner.report_unreadable(file.name, document.error());
      continue;
    }
    const std::string name = document->name();
    if (name != file.name) {
      const bool is_free = check_snapshot_name(name).has_value() && result.claimed.insert(name).second;
      examiner.report_misnamed(file.name, name, is_free);
      if (is_free) summaries.push_back(document->summary());
      continue;
    }
    summaries.push_back(document->summary());
    examiner.report_interrupted_merge(*document);
    each(*document);
  }
  examiner.report_tree(summaries, result.claimed);
  return result;
}

}  // namespace varve
