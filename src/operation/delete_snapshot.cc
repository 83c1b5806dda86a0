#include "operation/delete_snapshot.h"

#include <fmt/format.h>

#include <map>

#include "operation/disk_selection.h"
#include "operation/machine_snapshot.h"
#include "operation/metadata_edit.h"

namespace varve {

namespace {

// One image with all that is to be deleted from it: an image is opened once, however many snapshots it holds.
struct ImageWork {
  Disk disk;
  std::vector<std::string> names;
};

}  // namespace

Result<Operation> plan_delete_snapshot(Host& host, const DeleteSnapshotRequest& request) {
  TRY(host.check_writable());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  TRY(metadata.edit(request.name));  // kNotFound says which there are

  if (TRY(is_for_machines(host, domain.definition, metadata, request))) {
    return plan_machine_delete(host, std::move(domain), metadata, request);
  }
  const std::string failure = fmt::format("snapshot '{}' of '{}' is not deleted", request.name, request.domain);
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("delete snapshot '{}' of '{}'", request.name, request.domain), failure);
  operation.set_uuid(domain.definition.uuid());
  operation.set_snapshot(request.name);
  operation.set_command(
      fmt::format("snapshot delete '{}' '{}'{}", request.domain, request.name, request.children ? " --children" : ""));

  std::vector<std::string> names = {request.name};
  if (request.children) {
    for (const SnapshotSummary* child : metadata.tree().descendants(request.name)) names.push_back(child->name);
  }

  Preflight preflight(failure);
  std::map<std::string, ImageWork> images;  // by root path
  for (const std::string& name : names) {
    const SnapshotDocument& snapshot = *TRY(metadata.edit(name));
    if (snapshot.summary().is_protected) {
      preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("snapshot '{}' is protected", name)));
    }
    if (request.metadata_only) continue;
    for (SnapshotDiskUse& use : internal_disks_of(host, snapshot, domain.definition, "deleted", preflight)) {
      ImageWork& work = images.try_emplace(use.disk.source, ImageWork{.disk = use.disk, .names = {}}).first->second;
      work.names.push_back(name);
    }
  }

  DiskOpener opener(host, request.domain, preflight, operation.plan());
  std::vector<DiskTask> tasks;
  for (auto& [path, work] : images) {
    auto disk = opener.open(work.disk);
    if (!disk) continue;
    DiskChange change;
    for (const std::string& name : work.names) {
      if (disk->find(name)) {
        change.remove.push_back(name);
      } else {
        operation.plan().notes.push_back(fmt::format("disk {} had no snapshot '{}' any more", work.disk.target, name));
      }
    }
    if (!change.remove.empty()) tasks.push_back({.disk = std::move(*disk), .change = std::move(change)});
  }
  if (!preflight.ok() && !request.metadata_only) {
    Error error = std::move(std::move(preflight).finish()).error();
    error.notes.push_back("`--metadata-only` forgets the snapshot and leaves the images alone");
    return error;
  }
  TRY(std::move(preflight).finish());

  if (request.metadata_only) {
    operation.plan().notes.push_back("what the images hold of it stays in them");
  }
  TRY(metadata.remove(names));
  for (DiskTask& task : tasks) operation.add(std::move(task));
  operation.add(metadata.changes());
  operation.expect(metadata.still_valid());
  return operation;
}

}  // namespace varve
