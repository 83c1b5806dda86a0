#include "operation/edit_snapshot.h"

#include <fmt/format.h>

#include "domain/names.h"
#include "operation/disk_selection.h"
#include "operation/metadata_edit.h"

namespace varve {

namespace {

// The points in the images get the new name too.
std::vector<DiskTask> rename_points(const Host& host, const EditSnapshotRequest& request,
                                    const SnapshotDocument& snapshot, const DomainDocument& definition,
                                    Preflight& preflight, Plan& plan) {
  std::vector<DiskTask> tasks;
  DiskOpener opener(host, request.domain, preflight, plan);
  for (const SnapshotDiskUse& use : internal_disks_of(host, snapshot, definition, "renamed", preflight)) {
    auto disk = opener.open(use.disk);
    if (!disk) continue;
    if (!disk->find(request.name)) {
      preflight.refuse(missing_point(*disk).with_note(
          fmt::format("`varve where '{}' '{}'` shows what is there", request.domain, request.name)));
      continue;
    }
    if (disk->find(*request.new_name)) {
      preflight.refuse(
          make_error(ErrorKind::kAlreadyExists, fmt::format("the image of disk {}, {}, already holds a snapshot '{}'",
                                                            disk->target(), disk->path(), *request.new_name)));
    }
    DiskChange change;
    change.rename = {request.name, *request.new_name};
    tasks.push_back({.disk = std::move(*disk), .change = std::move(change)});
  }
  return tasks;
}

}  // namespace

Result<Operation> plan_edit_snapshot(Host& host, const EditSnapshotRequest& request) {
  const bool renames = request.new_name && *request.new_name != request.name;
  if (!renames && !request.description) {
    return make_error(ErrorKind::kInvalidArgument, "there is nothing to change")
        .with_note("`--name NEW` renames, `--description TEXT` describes");
  }
  if (renames) TRY(check_snapshot_name(*request.new_name));
  TRY(host.check_writable());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  SnapshotDocument* snapshot = TRY(metadata.edit(request.name));

  const std::string failure = fmt::format("snapshot '{}' of '{}' is not changed", request.name, request.domain);
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("edit snapshot '{}' of '{}'", request.name, request.domain), failure);
  operation.set_uuid(domain.definition.uuid());
  operation.set_snapshot(renames ? *request.new_name : request.name);
  operation.set_command(fmt::format("snapshot edit '{}' '{}'", request.domain, request.name));

  if (request.description) snapshot->set_description(*request.description);
  if (renames) {
    TRY(host.check_images_are_here());
    Preflight preflight(failure);
    refuse_checkpoints(host, request.domain, preflight);
    if (metadata.has(*request.new_name)) {
      preflight.refuse(
          make_error(ErrorKind::kAlreadyExists, fmt::format("there is a snapshot '{}' already", *request.new_name)));
    }
    std::vector<DiskTask> tasks =
        rename_points(host, request, *snapshot, domain.definition, preflight, operation.plan());
    TRY(std::move(preflight).finish());
    // Whoever names a safety snapshot wants to keep it.
    if (snapshot->summary().safety) TRY(snapshot->set_note("safety", std::nullopt));
    TRY(metadata.rename(request.name, *request.new_name));
    for (DiskTask& task : tasks) operation.add(std::move(task));
  }
  operation.add(metadata.changes());
  operation.expect(metadata.still_valid());
  return operation;
}

}  // namespace varve
