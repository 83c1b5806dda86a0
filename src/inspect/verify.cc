#include "inspect/verify.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "disk/snapshot_disks.h"
#include "domain/names.h"
#include "inspect/leftovers.h"
#include "inspect/verify_metadata.h"

namespace varve {

namespace {

// The snapshots of one domain against its images.
class Points {
 public:
  Points(const Host& host, const DomainDocument& definition, ImageExaminer& images, std::vector<Finding>& findings)
      : host_(host), definition_(definition), domain_(definition.name()), images_(images), findings_(findings) {}

  void look_for(const SnapshotDocument& snapshot);
  // Points that nobody claims; `claimed` by this domain.
  Result<void> look_for_unknown(const std::set<std::string>& claimed);

 private:
  Finding finding(FindingKind kind, Severity severity, const std::string& snapshot, std::string message) const;
  void look_for_external(const std::string& name, const SnapshotDiskUse& use);
  void look_for_file(const std::string& name, const std::string& path, const char* what);
  void report_missing(const std::string& name, std::vector<std::string> lacking, size_t disks, bool all_known);
  void report_unknown(const std::string& name, const std::vector<std::string>& targets, const qcow2::Snapshot& point);
  Result<bool> is_claimed_elsewhere(const std::string& name, const std::string& path);

  const Host& host_;
  const DomainDocument& definition_;
  std::string domain_;
  ImageExaminer& images_;
  std::vector<Finding>& findings_;
  // What the metadata of other domains says is in an image: host path -> names. Read when it is first asked for.
  std::optional<std::map<std::string, std::set<std::string>>> elsewhere_;
};

Finding Points::finding(FindingKind kind, Severity severity, const std::string& snapshot, std::string message) const {
  Finding finding;
  finding.kind = kind;
  finding.severity = severity;
  finding.domain = domain_;
  finding.snapshot = snapshot;
  // A point may have a name that no file can have.
  if (is_file_name(snapshot)) finding.path = Layout::snapshot(domain_, snapshot);
  finding.message = std::move(message);
  return finding;
}

void Points::look_for_file(const std::string& name, const std::string& path, const char* what) {
  if (path.empty() || host_.layout().resolve(path)) return;
  Finding found = finding(FindingKind::kMissingFile, Severity::kError, name,
                          fmt::format("{} {} is not there", what, host_.layout().shown(path)));
  found.path = path;
  found.remedy = "bring it back: without it, the snapshot can't be restored";
  findings_.push_back(std::move(found));
}

// The point is what the image was before the overlay was put upon it.
void Points::look_for_external(const std::string& name, const SnapshotDiskUse& use) {
  images_.look_at(use.disk, name);
  if (use.recorded.source_type == DiskSourceType::kFile) look_for_file(name, use.recorded.source, "its overlay");
}

void Points::look_for(const SnapshotDocument& snapshot) {
  const std::string name = snapshot.name();
  const auto uses = snapshot_disks(host_.layout(), snapshot, &definition_);
  if (!uses) {
    findings_.push_back(finding(FindingKind::kUnreadableMetadata, Severity::kError, name,
                                fmt::format("what it is made of can't be told: {}", uses.error().message)));
    return;
  }
  std::vector<std::string> lacking;
  size_t disks = 0;
  bool all_known = true;
  for (const SnapshotDiskUse& use : *uses) {
    if (use.mode == SnapshotMode::kExternal) look_for_external(name, use);
    if (use.mode != SnapshotMode::kInternal) continue;
    ++disks;
    const ExaminedImage* image = images_.look_at(use.disk, name);
    if (image == nullptr || !image->is_known) {
      all_known = false;
    } else if (const auto index = qcow2::find_by_name(image->points, name); !index) {
      lacking.push_back(use.disk.target);
      // Today's image need not be the one of that time, which is not there: it may only be unplugged.
      if (use.moved) all_known = false;
    } else if (const auto size = image->points[*index].disk_size; size && *size != image->virtual_size) {
      Finding found = finding(FindingKind::kOtherSize, Severity::kNote, name,
                              fmt::format("disk {} had {} bytes then and has {} today: a revert changes its size",
                                          use.disk.target, *size, image->virtual_size));
      found.disks = {use.disk.target};
      findings_.push_back(std::move(found));
    }
  }
  if (!lacking.empty()) report_missing(name, std::move(lacking), disks, all_known);
  if (snapshot.memory().mode == SnapshotMode::kExternal)
    look_for_file(name, snapshot.memory().file, "its memory image");
}

void Points::report_missing(const std::string& name, std::vector<std::string> lacking, size_t disks, bool all_known) {
  const bool is_complete = lacking.size() == disks;
  Finding found =
      finding(FindingKind::kMissingPoint, Severity::kError, name,
              is_complete ? "no image holds it any more: there is nothing to revert to"
                          : fmt::format("the image of {} {} does not hold it any more",
                                        lacking.size() == 1 ? "disk" : "each of the disks", fmt::join(lacking, ", ")));
  found.remedy = is_complete ? "`--repair` keeps the metadata aside, and the snapshot is gone from the list"
                             : "`varve snapshot revert --disk` takes back the others; `--repair` leaves out the disks "
                               "that lack it, and says so in its description";
  found.disks = std::move(lacking);
  found.is_complete = is_complete;
  found.is_repairable = all_known;
  if (!all_known) found.remedy += "; not before all its images are there";
  findings_.push_back(std::move(found));
}

Result<bool> Points::is_claimed_elsewhere(const std::string& name, const std::string& path) {
  if (!elsewhere_) {
    elsewhere_.emplace();
    for (const std::string& other : TRY(host_.metadata().domains())) {
      if (other == domain_) continue;
      const auto definition = host_.definitions().load(other);
      for (const std::string& snapshot : TRY(host_.metadata().names(other))) {
        const auto document = host_.metadata().load(other, snapshot);
        if (!document) continue;
        const auto uses = snapshot_disks(host_.layout(), *document, definition ? &*definition : nullptr);
        if (!uses) continue;
        for (const SnapshotDiskUse& use : *uses) {
          if (use.mode != SnapshotMode::kInternal) continue;
          if (const auto host_path = host_.layout().resolve(use.disk.source))
            (*elsewhere_)[*host_path].insert(snapshot);
        }
      }
    }
  }
  const auto host_path = host_.layout().resolve(path);
  const auto found = host_path ? elsewhere_->find(*host_path) : elsewhere_->end();
  return found != elsewhere_->end() && found->second.contains(name);
}

void Points::report_unknown(const std::string& name, const std::vector<std::string>& targets,
                            const qcow2::Snapshot& point) {
  Finding found = finding(FindingKind::kUnknownPoint, Severity::kWarning, name,
                          fmt::format("the image of {} {} holds it, and no metadata knows it",
                                      targets.size() == 1 ? "disk" : "each of the disks", fmt::join(targets, ", ")));
  found.disks = targets;
  found.time_sec = point.date_sec;
  found.vm_state_bytes = point.vm_state_size;
  found.is_repairable = check_snapshot_name(name).has_value();
  const Disk* disk = definition_.disk(targets.front());
  found.path = disk->source;
  found.remedy = found.is_repairable
                     ? "`--repair` adopts it: metadata is written for it, with the definition of today"
                     : fmt::format(
                           "a snapshot of a machine can't be called so; `varve image snapshot -d '{}' '{}'` "
                           "deletes it, if nobody needs it",
                           name, host_.layout().shown(disk->source));
  findings_.push_back(std::move(found));
}

Result<void> Points::look_for_unknown(const std::set<std::string>& claimed) {
  struct Unknown {
    std::vector<std::string> targets;
    const qcow2::Snapshot* point;
  };
  std::map<std::string, Unknown> unknown;
  for (const Disk& disk : definition_.disks()) {
    const ExaminedImage* image = images_.look_at(disk, "");
    if (image == nullptr) continue;
    std::set<std::string> seen;  // a table may hold one name twice
    for (const qcow2::Snapshot& point : image->points) {
      if (claimed.contains(point.name) || !seen.insert(point.name).second) continue;
      if (TRY(is_claimed_elsewhere(point.name, disk.source))) continue;
      unknown.try_emplace(point.name, Unknown{{}, &point}).first->second.targets.push_back(disk.target);
    }
  }
  for (const auto& [name, entry] : unknown) report_unknown(name, entry.targets, *entry.point);
  return {};
}

// Among equals, in the order in which they were found.
std::vector<Finding> worst_first(std::vector<Finding> findings) {
  std::vector<Finding> sorted;
  for (const Severity severity : {Severity::kError, Severity::kWarning, Severity::kUnknown, Severity::kNote}) {
    std::ranges::copy_if(findings, std::back_inserter(sorted),
                         [&](const Finding& finding) { return finding.severity == severity; });
  }
  return sorted;
}

}  // namespace

Result<Examination> examine_domain(const Host& host, const DomainDocument& definition,
                                   const ImageCheckProgress& progress) {
  Examination result;
  result.domain = definition.name();
  ImageExaminer images(host, result.domain, progress, result.findings);
  // Today's first: what is wrong with an image is then not said of a snapshot.
  for (const Disk& disk : definition.disks()) images.look_at(disk, "");
  Points points(host, definition, images, result.findings);
  const ExaminedMetadata metadata = TRY(examine_metadata(
      host, result.domain, [&](const SnapshotDocument& snapshot) { points.look_for(snapshot); }, result.findings));
  TRY(points.look_for_unknown(metadata.claimed));
  TRY(find_leftovers_of_domain(host, result.domain, result.findings));
  result.snapshots = metadata.files;
  result.images = images.count();
  result.findings = worst_first(std::move(result.findings));
  return result;
}

Result<Examination> verify_domain(Host& host, const std::string& domain, const ImageCheckProgress& progress) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  return examine_domain(host, locked.definition, progress);
}

Result<std::vector<Finding>> verify_host(const Host& host) {
  TRY(host.check_images_are_here());
  std::vector<Finding> findings;
  TRY(find_leftovers_of_host(host, findings));
  return findings;
}

}  // namespace varve
