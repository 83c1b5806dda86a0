#include "operation/create_snapshot.h"

#include <fmt/format.h>

#include "domain/names.h"
#include "operation/machine_snapshot.h"
#include "operation/metadata_edit.h"

namespace varve {

namespace {

Error taken_in_image(const InternalDisk& disk, const std::string& name) {
  const qcow2::Snapshot& point = disk.points()[*disk.find(name)];
  return make_error(ErrorKind::kAlreadyExists,
                    fmt::format("the image of disk {}, {}, already holds a snapshot of that name (id {})",
                                disk.target(), disk.path(), point.id))
      .with_note(fmt::format("choose another name, or delete that one with `varve image snapshot -d '{}' {}`", name,
                             disk.host_path()));
}

// What only a machine that runs, or somebody who runs machines, can be asked for.
void refuse_what_needs_machines(const CreateSnapshotRequest& request, Preflight& preflight) {
  const auto refuse = [&](const char* what) {
    preflight.refuse(
        make_error(ErrorKind::kRefused, fmt::format("{} is for hosts whose machines a libvirtd runs", what))
            .with_note("without a daemon, snapshots are made inside of the images of machines that are "
                       "shut off, so far"));
  };
  if (request.mode == SnapshotMode::kExternal) refuse("--mode external");
  if (request.memory == SnapshotMemoryWish::kWanted) refuse("--memory");
  if (request.live) refuse("--live");
  if (request.quiesce) refuse("--quiesce");
}

}  // namespace

Result<Operation> plan_create_snapshot(Host& host, const CreateSnapshotRequest& request) {
  const std::string name = request.name.empty() ? std::to_string(request.now_sec) : request.name;
  TRY(check_snapshot_name(name));
  TRY(host.check_writable());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  if (TRY(is_for_machines(host, domain.definition, request))) {
    return plan_machine_snapshot(host, std::move(domain), name, request);
  }
  const std::string failure = fmt::format("snapshot '{}' of '{}' is not created", name, request.domain);
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("create snapshot '{}' of '{}'", name, request.domain), failure);
  operation.set_snapshot(name);
  operation.set_command(fmt::format("snapshot create '{}' '{}'", request.domain, name));

  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  Preflight preflight(failure);
  refuse_what_needs_machines(request, preflight);
  refuse_checkpoints(host, request.domain, preflight);
  if (metadata.has(name)) {
    preflight.refuse(make_error(ErrorKind::kAlreadyExists, "there is a snapshot of that name")
                         .with_note(fmt::format("choose another name, or rename the other one: `varve snapshot edit "
                                                "'{}' '{}' --name NEW`",
                                                request.domain, name)));
  }
  operation.plan().checks.push_back(fmt::format("the name '{}' is free", name));
  for (const std::string& problem : metadata.problems()) operation.plan().notes.push_back(problem);

  if (TRY(host.has_saved_memory(request.domain))) {
    operation.plan().notes.push_back(
        fmt::format("the memory of '{}' was saved when it stopped (managed save): the snapshot has its disks alone, as "
                    "after a power cut",
                    request.domain));
  }
  const std::vector<SnapshotDisk> modes = choose_modes(domain.definition, request.disks, preflight);
  DiskOpener opener(host, request.domain, preflight, operation.plan());
  std::vector<DiskTask> tasks;
  for (const SnapshotDisk& mode : modes) {
    if (mode.mode == SnapshotMode::kNo) {
      operation.plan().notes.push_back(fmt::format("disk {} is not part of the snapshot", mode.name));
    }
    if (mode.mode != SnapshotMode::kInternal) continue;
    auto disk = opener.open(*domain.definition.disk(mode.name));
    if (!disk) continue;
    if (disk->find(name)) preflight.refuse(taken_in_image(*disk, name));
    DiskChange change;
    change.create = qcow2::SnapshotSpec{
        .name = name, .date_sec = static_cast<uint32_t>(request.now_sec), .date_nsec = request.now_nsec};
    tasks.push_back({.disk = std::move(*disk), .change = std::move(change)});
  }
  TRY(std::move(preflight).finish());

  NewSnapshot spec;
  spec.name = name;
  spec.description = request.description;
  if (const SnapshotSummary* current = metadata.tree().current()) spec.parent = current->name;
  spec.creation_time = static_cast<int64_t>(request.now_sec);
  spec.disks = modes;
  metadata.add(TRY(SnapshotDocument::create(domain.definition, spec)));
  TRY(metadata.set_current(name));

  for (DiskTask& task : tasks) operation.add(std::move(task));
  operation.add(metadata.changes());
  operation.expect(metadata.still_valid());
  operation.expect_definition(domain.definition);
  return operation;
}

}  // namespace varve
