#include "operation/repair.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <climits>
#include <map>

#include "base/atomic_file.h"
#include "domain/xml.h"
#include "inspect/verify.h"
#include "operation/image_repair.h"
#include "operation/metadata_edit.h"
#include "operation/preflight.h"
#include "store/domain_lock.h"

namespace varve {

namespace {

std::string day_of(uint64_t seconds) {
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

class Repairing {
 public:
  Repairing(Host& host, const RepairDomainRequest& request, const DomainDocument& definition, MetadataEdit& metadata)
      : host_(host), request_(request), definition_(definition), metadata_(metadata) {}

  Result<void> plan(const Finding& finding);
  // After all findings.
  Result<void> finish(Operation& operation);

 private:
  void step(std::string line) { steps_.push_back(std::move(line)); }
  Result<std::string> keep_aside(const std::string& name);
  Result<void> set_aside(const Finding& finding);
  Result<void> rename_file(const Finding& finding);
  Result<void> make_root(const Finding& finding);
  Result<void> leave_out_disks(const Finding& finding);
  Result<void> adopt(const Finding& finding);
  Result<void> mend_image(const Finding& finding);
  std::string today() const { return day_of(request_.now_sec); }

  Host& host_;
  const RepairDomainRequest& request_;
  const DomainDocument& definition_;
  MetadataEdit& metadata_;
  std::vector<std::string> steps_;
  std::vector<FileChange> changes_;
  std::vector<std::string> gone_;              // snapshots whose metadata goes
  std::map<std::string, ImageRepair> images_;  // by host path
};

// A copy of the file as it is; gives the root path that it will have.
Result<std::string> Repairing::keep_aside(const std::string& name) {
  const Layout& layout = host_.layout();
  const std::string file = Layout::snapshot(request_.domain, name);
  std::string contents = host_.writer().writes_file(file)
                             ? TRY(read_file(TRY(layout.resolve(file)), xml::kMaxDocumentSize))
                             : TRY(host_.metadata().load(request_.domain, name)).to_file();
  const std::string directory = Layout::aside_directory(request_.domain);
  std::string path = fmt::format("{}/{}.xml", directory, name);
  const auto is_taken = [&]() -> Result<bool> {
    if (std::ranges::find(changes_, path, &FileChange::path) != changes_.end()) return true;
    const auto there = layout.resolve(path);
    if (!there && there.error().kind != ErrorKind::kNotFound) return there.error();
    return there.has_value();
  };
  for (int number = 2; TRY(is_taken()); ++number) path = fmt::format("{}/{}.{}.xml", directory, name, number);
  if (path.size() - directory.size() - 1 > NAME_MAX) {
    return make_error(ErrorKind::kRefused, fmt::format("the name of {} is too long to be kept aside", file))
        .with_note("move the file away by hand");
  }
  changes_.push_back({.path = path, .contents = std::move(contents)});
  return path;
}

Result<void> Repairing::set_aside(const Finding& finding) {
  const std::string path = TRY(keep_aside(finding.snapshot));
  step(fmt::format("keep the metadata of '{}' aside: {}", finding.snapshot, host_.layout().shown(path)));
  if (finding.kind == FindingKind::kMissingPoint) {
    gone_.push_back(finding.snapshot);
  } else {
    changes_.push_back(host_.metadata().removing(request_.domain, finding.snapshot));
  }
  return {};
}

Result<void> Repairing::rename_file(const Finding& finding) {
  const std::string host_path = TRY(host_.layout().resolve(finding.path));
  SnapshotDocument document = TRY(SnapshotDocument::load(host_path));
  step(fmt::format("rename the file '{}.xml' to '{}.xml', as it says itself", finding.snapshot, document.name()));
  metadata_.add(std::move(document));
  changes_.push_back(host_.metadata().removing(request_.domain, finding.snapshot));
  return {};
}

Result<void> Repairing::make_root(const Finding& finding) {
  SnapshotDocument* document = TRY(metadata_.edit(finding.snapshot));
  step(fmt::format("make '{}' a root: its parent '{}' can't be one", finding.snapshot, document->parent()));
  document->set_parent("");
  return {};
}

Result<void> Repairing::leave_out_disks(const Finding& finding) {
  const std::string path = TRY(keep_aside(finding.snapshot));
  SnapshotDocument* document = TRY(metadata_.edit(finding.snapshot));
  const std::string targets = fmt::format("{}", fmt::join(finding.disks, ", "));
  for (const std::string& target : finding.disks) TRY(document->leave_out_disk(target));
  const std::string description = document->description();
  document->set_description(fmt::format("{}{}{}: left out disk {}, whose image lost the snapshot (varve verify).",
                                        description, description.empty() ? "" : "\n", today(), targets));
  step(fmt::format("leave disk {} out of '{}'; the metadata as it is now is kept as {}", targets, finding.snapshot,
                   host_.layout().shown(path)));
  return {};
}

Result<void> Repairing::adopt(const Finding& finding) {
  metadata_.add(TRY(adopted_snapshot(definition_, finding, request_.now_sec)));
  step(fmt::format("adopt '{}' of disk {}: {}", finding.snapshot, fmt::join(finding.disks, ", "),
                   host_.layout().shown(Layout::snapshot(request_.domain, finding.snapshot))));
  return {};
}

Result<void> Repairing::mend_image(const Finding& finding) {
  const std::string host_path = TRY(host_.layout().resolve(finding.path));
  if (images_.contains(host_path)) return {};
  ImageRepair repair =
      TRY(ImageRepair::open(host_.layout(), finding.path,
                            finding.kind == FindingKind::kImageLeaks ? check::Repair::kLeaks : check::Repair::kAll));
  images_.emplace(host_path, std::move(repair));
  return {};
}

Result<void> Repairing::plan(const Finding& finding) {
  switch (finding.kind) {
    case FindingKind::kUnreadableMetadata:
      return set_aside(finding);
    case FindingKind::kMisnamedMetadata:
      return rename_file(finding);
    case FindingKind::kMissingParent:
    case FindingKind::kParentCircle:
      return make_root(finding);
    case FindingKind::kSeveralCurrent:
      step(fmt::format("leave the mark of the current snapshot to '{}'", finding.snapshot));
      return metadata_.set_current(finding.snapshot);
    case FindingKind::kMissingPoint:
      return finding.is_complete ? set_aside(finding) : leave_out_disks(finding);
    case FindingKind::kUnknownPoint:
      return adopt(finding);
    case FindingKind::kImageErrors:
    case FindingKind::kImageLeaks:
      return mend_image(finding);
    case FindingKind::kTemporaryFile:
      step(fmt::format("remove {}", host_.layout().shown(finding.path)));
      changes_.push_back({.path = finding.path, .contents = std::nullopt});
      return {};
    default:
      return make_error(ErrorKind::kInternal, fmt::format("no repair for '{}'", name_of(finding.kind)));
  }
}

Result<void> Repairing::finish(Operation& operation) {
  if (!gone_.empty()) {
    TRY(metadata_.remove(gone_));
    step(fmt::format("close the tree where {} {}", list_of(gone_), gone_.size() == 1 ? "was" : "were"));
  }
  for (auto& [path, image] : images_) operation.add(std::move(image));
  std::vector<FileChange> changes = std::move(changes_);
  for (FileChange& change : metadata_.changes()) changes.push_back(std::move(change));
  operation.add(std::move(changes), std::move(steps_));
  operation.expect(metadata_.still_valid());
  return {};
}

}  // namespace

Result<SnapshotDocument> adopted_snapshot(const DomainDocument& definition, const Finding& finding, uint64_t now_sec) {
  const bool has_memory = finding.vm_state_bytes != 0;
  NewSnapshot spec;
  spec.name = finding.snapshot;
  spec.description =
      fmt::format("Found in the image of disk {} on {}, without metadata; the definition is of that day.",
                  fmt::join(finding.disks, ", "), day_of(now_sec));
  spec.creation_time = finding.time_sec;
  spec.state = has_memory ? SnapshotState::kRunning : SnapshotState::kShutoff;
  spec.current = false;
  if (has_memory) spec.memory.mode = SnapshotMode::kInternal;
  for (const Disk& disk : definition.disks()) {
    const bool has_it = std::ranges::find(finding.disks, disk.target) != finding.disks.end();
    spec.disks.push_back({.name = disk.target,
                          .mode = has_it ? SnapshotMode::kInternal : SnapshotMode::kNo,
                          .format = {},
                          .source = {}});
  }
  spec.notes = {{"adopted", "yes"}};
  return SnapshotDocument::create(definition, spec);
}

Result<RepairDomain> plan_repair_domain(Host& host, const RepairDomainRequest& request) {
  TRY(host.check_writable());
  TRY(host.check_images_are_here());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  Examination examination = TRY(examine_domain(host, domain.definition));
  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));

  const std::string failure = fmt::format("domain '{}' is not repaired", request.domain);
  RepairDomain result{.operation = Operation(host, std::move(domain.lock), request.domain,
                                             fmt::format("repair '{}'", request.domain), failure),
                      .mended = {},
                      .remaining = {}};
  result.operation.set_uuid(domain.definition.uuid());
  result.operation.set_command(fmt::format("verify '{}' --repair", request.domain));
  Preflight preflight(failure);
  Repairing repairing(host, request, domain.definition, metadata);
  const auto plan = [&](Finding& finding) {
    preflight.accept(repairing.plan(finding));
    result.mended.push_back(std::move(finding));
  };
  // What other repairs build upon comes first.
  std::vector<Finding*> others;
  for (Finding& finding : examination.findings) {
    if (!finding.is_repairable) {
      result.remaining.push_back(std::move(finding));
    } else if (finding.kind == FindingKind::kMisnamedMetadata) {
      plan(finding);
    } else {
      others.push_back(&finding);
    }
  }
  for (Finding* finding : others) plan(*finding);
  TRY(std::move(preflight).finish());
  if (!result.mended.empty()) TRY(repairing.finish(result.operation));
  return result;
}

std::vector<std::string> describe_host_repair(const Host& host, const std::vector<Finding>& findings) {
  std::vector<std::string> lines;
  for (const Finding& finding : findings) {
    if (finding.is_repairable) lines.push_back(fmt::format("remove {}", host.layout().shown(finding.path)));
  }
  return lines;
}

Result<void> repair_host(Host& host, const std::vector<Finding>& findings) {
  TRY(host.check_writable());
  for (const Finding& finding : findings) {
    if (!finding.is_repairable) continue;
    if (finding.kind == FindingKind::kUnusedLock) {
      TRY(DomainLock::remove_if_free(host.layout(), finding.domain));
    } else {
      TRY(apply(host.layout(), {.path = finding.path, .contents = std::nullopt}));
    }
  }
  return {};
}

}  // namespace varve
