#include "operation/disk_selection.h"

#include <fmt/format.h>

#include <algorithm>

namespace varve {

namespace {

std::string targets_of(const DomainDocument& definition) {
  std::vector<std::string> targets;
  for (const Disk& disk : definition.disks()) targets.push_back(disk.target);
  return targets.empty() ? "no disk" : list_of(targets, 30);
}

}  // namespace

std::vector<SnapshotDisk> choose_modes(const DomainDocument& definition, const DiskModes& wanted,
                                       Preflight& preflight) {
  for (const auto& [target, mode] : wanted) {
    if (definition.disk(target) == nullptr) {
      preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("there is no disk {}", target))
                           .with_note(fmt::format("it has {}", targets_of(definition))));
    }
  }
  std::vector<SnapshotDisk> modes;
  bool any = false;
  for (const Disk& disk : definition.disks()) {
    SnapshotMode mode = disk.in_snapshots_by_default() ? SnapshotMode::kInternal : SnapshotMode::kNo;
    if (disk.snapshot == SnapshotMode::kExternal || disk.snapshot == SnapshotMode::kManual) mode = disk.snapshot;
    if (const auto said = wanted.find(disk.target); said != wanted.end()) mode = said->second;
    if (mode != SnapshotMode::kInternal && mode != SnapshotMode::kNo) {
      preflight.refuse(
          make_error(ErrorKind::kRefused,
                     fmt::format("disk {} is to be kept as '{}', and snapshots are made inside of images "
                                 "('internal') only so far",
                                 disk.target, name_of(mode)))
              .with_note(fmt::format("`--disk {0}=internal` or `--disk {0}=no` says what to do instead", disk.target)));
    }
    any = any || mode == SnapshotMode::kInternal;
    modes.push_back({.name = disk.target, .mode = mode, .format = {}, .source = {}});
  }
  if (!any && preflight.ok()) {
    preflight.refuse(make_error(ErrorKind::kRefused, "no disk is selected for the snapshot")
                         .with_note(fmt::format("it has {}; read-only disks, cdroms, floppies and disks with "
                                                "snapshot='no' are left out",
                                                targets_of(definition))));
  }
  return modes;
}

std::optional<InternalDisk> DiskOpener::open(const Disk& disk) {
  std::optional<InternalDisk> opened;
  if (const auto path = host_.layout().resolve(disk.source); disk.is_local_file() && path) {
    const auto [other, is_new] = targets_.emplace(*path, disk.target);
    if (!is_new) {
      preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("disks {} and {} have the same image, {}",
                                                                    other->second, disk.target, disk.source))
                            .with_note(fmt::format("`--disk {}=no` leaves one of them out", disk.target)));
      return std::nullopt;
    }
  }
  opened = preflight_.accept(InternalDisk::open(host_.layout(), disk, Access::kReadWrite));
  if (opened) {
    plan_.checks.push_back(fmt::format("disk {}: {} is a qcow2 image that nobody uses, and can be written",
                                       opened->target(), opened->path()));
    note_other_users(*opened);
  }
  return opened;
}

void DiskOpener::note_other_users(const InternalDisk& disk) {
  const auto listing = host_.definitions().list();
  if (!listing) return;
  for (const DomainDocument& other : listing->domains) {
    if (other.name() == domain_) continue;
    for (const Disk& theirs : other.disks()) {
      if (!theirs.is_local_file() || theirs.source.empty()) continue;
      const auto path = host_.layout().resolve(theirs.source);
      if (!path || *path != disk.host_path()) continue;
      plan_.notes.push_back(fmt::format("{} is also disk {} of '{}': what happens to it here happens there",
                                        disk.path(), theirs.target, other.name()));
    }
  }
}

std::vector<SnapshotDiskUse> internal_disks_of(const Host& host, const SnapshotDocument& snapshot,
                                               const DomainDocument& definition, const char* verb,
                                               Preflight& preflight) {
  auto uses = preflight.accept(snapshot_disks(host.layout(), snapshot, &definition));
  if (!uses) return {};
  if (snapshot.memory().mode == SnapshotMode::kExternal) {
    preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("its memory is in a file of its own, {}, and such "
                                                                 "snapshots can't be {} yet",
                                                                 snapshot.memory().file, verb)));
  }
  std::vector<SnapshotDiskUse> internal;
  for (SnapshotDiskUse& use : *uses) {
    if (use.mode == SnapshotMode::kInternal) {
      internal.push_back(std::move(use));
    } else if (use.mode != SnapshotMode::kNo) {
      preflight.refuse(
          make_error(ErrorKind::kRefused, fmt::format("disk {} is kept as '{}', and only snapshots inside of images "
                                                      "('internal') can be {} so far",
                                                      use.disk.target, name_of(use.mode), verb)));
    }
  }
  return internal;
}

void refuse_checkpoints(const Host& host, const std::string& domain, Preflight& preflight) {
  if (host.machines() == nullptr) return;
  const auto count = preflight.accept(host.machines()->checkpoints(domain));
  if (count.value_or(0) == 0) return;
  preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("it has {} checkpoint{} for backups, beside which "
                                                               "libvirt allows no change of snapshots",
                                                               *count, *count == 1 ? "" : "s"))
                       .with_note(fmt::format("`virsh checkpoint-list '{}'` lists them", domain)));
}

Error missing_point(const InternalDisk& disk) {
  return make_error(ErrorKind::kRefused, fmt::format("disk {} has no snapshot of that name", disk.target()))
      .with_note(fmt::format("{} holds {}", disk.path(), disk.list_of_points()));
}

}  // namespace varve
