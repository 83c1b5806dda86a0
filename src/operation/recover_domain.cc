#include "operation/recover_domain.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "disk/internal_disk.h"
#include "disk/snapshot_disks.h"
#include "inspect/verify.h"
#include "operation/define_domain.h"
#include "operation/metadata_edit.h"
#include "operation/preflight.h"
#include "operation/repair.h"

namespace varve {

namespace {

class Recovering {
 public:
  Recovering(Host& host, const RecoverySource& source, const RecoverDomainRequest& request, Plan& plan,
             Preflight& preflight)
      : host_(host), source_(source), request_(request), plan_(plan), preflight_(preflight) {}

  // Of today, or the one that is put back.
  Result<DomainDocument> choose_definition();
  void check_images(const DomainDocument& definition);
  Result<std::vector<std::string>> put_back(const DomainDocument& definition, MetadataEdit& metadata);
  Result<std::vector<std::string>> adopt(const DomainDocument& definition, const std::vector<std::string>& put_back,
                                         MetadataEdit& metadata);

 private:
  Result<DomainDocument> newest_recorded() const;
  bool is_of_another_domain(const DomainDocument& definition, const SnapshotDocument& snapshot) const;
  void belong_to(const DomainDocument& definition, SnapshotDocument& snapshot) const;

  Host& host_;
  const RecoverySource& source_;
  const RecoverDomainRequest& request_;
  Plan& plan_;
  Preflight& preflight_;
};

// Every snapshot holds the definition of its time.
Result<DomainDocument> Recovering::newest_recorded() const {
  MetadataStore::Listing listing = TRY(source_.metadata.list(request_.domain));
  std::ranges::sort(listing.snapshots, std::greater<>(), &SnapshotSummary::creation_time);
  for (const SnapshotSummary& summary : listing.snapshots) {
    const SnapshotDocument snapshot = TRY(source_.metadata.load(request_.domain, summary.name));
    auto definition = TRY(snapshot.inactive_domain());
    if (!definition) {
      auto recorded = snapshot.domain();
      if (!recorded) continue;
      definition = std::move(*recorded);
    }
    plan_.notes.push_back(fmt::format("the definition is the one that snapshot '{}' holds", summary.name));
    return std::move(*definition);
  }
  Error error = make_error(ErrorKind::kNotFound, fmt::format("there is nothing to recover '{}' from", request_.domain));
  error.notes.push_back(fmt::format("looked for {} and for snapshots in {}",
                                    source_.layout.shown(Layout::definition(request_.domain)),
                                    source_.layout.shown(Layout::snapshots_directory(request_.domain))));
  error.notes.emplace_back("`--from dir:/mnt/old` looks on the disk of another host");
  return error;
}

Result<DomainDocument> Recovering::choose_definition() {
  if (TRY(host_.definitions().exists(request_.domain))) return host_.definitions().load(request_.domain);
  auto definition = source_.definitions.load(request_.domain);
  if (!definition && definition.error().kind != ErrorKind::kNotFound) {
    plan_.notes.push_back(definition.error().message);
    return newest_recorded();
  }
  if (!definition) return newest_recorded();
  return definition;
}

void Recovering::check_images(const DomainDocument& definition) {
  for (const Disk& disk : definition.disks()) {
    if (!disk.is_local_file() || disk.source.empty() || host_.layout().resolve(disk.source)) continue;
    Error error = make_error(ErrorKind::kRefused, fmt::format("disk {}: its image {} is not there", disk.target,
                                                              host_.layout().shown(disk.source)));
    const auto there = source_.layout.resolve(disk.source);
    error.notes.push_back(
        there ? fmt::format("`cp -a --sparse=always '{}' '{}'` brings it", *there, host_.layout().shown(disk.source))
              : "bring it back first: the snapshots inside of it are lost without it");
    preflight_.refuse(std::move(error));
  }
}

// A name says little: "debian" may be another machine. One that was defined again has another UUID, and the same
// images.
bool Recovering::is_of_another_domain(const DomainDocument& definition, const SnapshotDocument& snapshot) const {
  const auto then = snapshot.domain();
  if (!then || then->uuid() == definition.uuid()) return false;
  const auto uses = snapshot_disks(host_.layout(), snapshot, &definition);
  if (!uses) return true;
  bool any = false;
  for (const SnapshotDiskUse& use : *uses) {
    if (use.mode == SnapshotMode::kNo) continue;
    const Disk* today = definition.disk(use.disk.target);
    if (use.mode != SnapshotMode::kInternal || today == nullptr || today->source != use.disk.source) return true;
    const auto image = InternalDisk::open(host_.layout(), *today, Access::kReadOnly);
    if (!image || !image->find(snapshot.name())) return true;
    any = true;
  }
  return !any;
}

// Under the name and the UUID of today.
void Recovering::belong_to(const DomainDocument& definition, SnapshotDocument& snapshot) const {
  for (const char* name : {"domain", "inactiveDomain"}) {
    xml::Element* domain = snapshot.root().child(name);
    if (domain == nullptr) continue;
    xml::Element* uuid = domain->child("uuid");
    if (uuid != nullptr && !definition.uuid().empty() && uuid->text() != definition.uuid()) {
      uuid->set_text(definition.uuid());
    }
    xml::Element* domain_name = domain->child("name");
    if (domain_name != nullptr && domain_name->text() != definition.name()) domain_name->set_text(definition.name());
  }
}

Result<std::vector<std::string>> Recovering::put_back(const DomainDocument& definition, MetadataEdit& metadata) {
  std::vector<std::string> names;
  MetadataStore::Listing listing = TRY(source_.metadata.list(request_.domain));
  for (const Error& problem : listing.problems) plan_.notes.push_back(problem.message);
  const SnapshotTree tree(std::move(listing.snapshots));
  for (const std::string& problem : tree.problems()) plan_.notes.push_back(problem);
  const bool has_current = metadata.tree().current() != nullptr;
  for (const SnapshotSummary* summary : tree.topological()) {
    if (metadata.has(summary->name)) continue;
    SnapshotDocument snapshot = TRY(source_.metadata.load(request_.domain, summary->name));
    if (is_of_another_domain(definition, snapshot)) {
      plan_.notes.push_back(fmt::format(
          "'{}' is not put back: it was taken of a domain with another UUID, and the images of '{}' do not hold it",
          summary->name, request_.domain));
      continue;
    }
    belong_to(definition, snapshot);
    if (!summary->parent.empty() && std::ranges::count(names, summary->parent) == 0 && !metadata.has(summary->parent)) {
      snapshot.set_parent("");  // it is not there, or was not put back
    }
    snapshot.set_current(!has_current && tree.current() == summary);
    metadata.add(std::move(snapshot));
    names.push_back(summary->name);
  }
  return names;
}

Result<std::vector<std::string>> Recovering::adopt(const DomainDocument& definition,
                                                   const std::vector<std::string>& put_back, MetadataEdit& metadata) {
  std::vector<std::string> names;
  const Examination examination = TRY(examine_domain(host_, definition));
  for (const Finding& finding : examination.findings) {
    if (finding.kind != FindingKind::kUnknownPoint || std::ranges::count(put_back, finding.snapshot) > 0) continue;
    if (!finding.is_repairable) {
      plan_.notes.push_back(fmt::format("'{}': {}; {}", finding.snapshot, finding.message, finding.remedy));
      continue;
    }
    metadata.add(TRY(adopted_snapshot(definition, finding, request_.now_sec)));
    names.push_back(finding.snapshot);
  }
  return names;
}

}  // namespace

Result<RecoverDomain> plan_recover_domain(Host& host, const RecoverySource& source,
                                          const RecoverDomainRequest& request) {
  TRY(host.check_writable());
  TRY(host.check_images_are_here());
  const std::string failure = fmt::format("domain '{}' is not recovered", request.domain);
  DomainLock lock = TRY(host.lock(request.domain, DomainLock::Mode::kExclusive));
  RecoverDomain recover{.operation = Operation(host, std::move(lock), request.domain,
                                               fmt::format("recover '{}'", request.domain), failure),
                        .put_back = {},
                        .adopted = {}};
  Operation& operation = recover.operation;
  operation.set_command(fmt::format("vm recover '{}'", request.domain));
  Preflight preflight(failure);
  Recovering recovering(host, source, request, operation.plan(), preflight);

  const DomainDocument definition = TRY(recovering.choose_definition());
  operation.set_uuid(definition.uuid());
  recover.defines = !TRY(host.definitions().exists(request.domain));
  recovering.check_images(definition);
  if (recover.defines) {
    Plan unsaid;  // that an image is missing is said above
    check_definition(host, definition, preflight, unsaid);
  }
  TRY(std::move(preflight).finish());

  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  recover.put_back = TRY(recovering.put_back(definition, metadata));
  recover.adopted = TRY(recovering.adopt(definition, recover.put_back, metadata));
  std::vector<std::string> steps;
  for (const std::string& name : recover.put_back) steps.push_back(fmt::format("put back snapshot '{}'", name));
  for (const std::string& name : recover.adopted) {
    steps.push_back(fmt::format("adopt snapshot '{}', which is in the images, with the definition of today", name));
  }
  if (recover.defines) {
    operation.add({host.definitions().saving(definition)}, {fmt::format("define '{}'", request.domain)});
  }
  operation.add(metadata.changes(), std::move(steps));
  operation.expect(metadata.still_valid());
  return recover;
}

}  // namespace varve
