#include "operation/undefine_domain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "host/image_needs.h"
#include "operation/disk_selection.h"
#include "operation/metadata_edit.h"

namespace varve {

namespace {

class Undefining {
 public:
  Undefining(Host& host, const UndefineDomainRequest& request, const DomainDocument& definition, Operation& operation,
             Preflight& preflight)
      : host_(host), request_(request), definition_(definition), operation_(operation), preflight_(preflight) {}

  void remove_storage();
  // The points of all snapshots go from the images that stay.
  void remove_points(MetadataEdit& metadata);
  const std::set<std::string>& removed() const { return removed_; }
  std::vector<DiskTask> take_tasks() { return std::move(tasks_); }

 private:
  bool stays(const std::string& root_path) const { return !removed_.contains(root_path); }
  void check_unused(const Disk& disk, const std::string& host_path);

  Host& host_;
  const UndefineDomainRequest& request_;
  const DomainDocument& definition_;
  Operation& operation_;
  Preflight& preflight_;
  std::set<std::string> removed_;  // root paths
  std::vector<DiskTask> tasks_;
};

// Only asks: the lock is taken again when the image is removed.
void Undefining::check_unused(const Disk& disk, const std::string& host_path) {
  auto file = FileDevice::open(host_path, Access::kReadOnly, LockRequest::format_writer());
  if (!file) preflight_.refuse(std::move(file).error().context(fmt::format("disk {}", disk.target)));
}

void Undefining::remove_storage() {
  const auto others = preflight_.accept(images_needed(host_, request_.domain));
  if (!others) return;
  for (const Disk& disk : definition_.disks()) {
    if (disk.source.empty()) continue;
    const auto keep = [&](const std::string& why) {
      operation_.plan().notes.push_back(fmt::format("disk {}: {} stays, {}", disk.target, disk.source, why));
    };
    if (disk.source_type != DiskSourceType::kFile) {
      keep("it is no file");
      continue;
    }
    const auto path = host_.layout().resolve(disk.source);
    if (!path && path.error().kind == ErrorKind::kNotFound) continue;
    if (!path) {
      preflight_.refuse(path.error());
    } else if (disk.device != DiskDevice::kDisk || disk.readonly) {
      keep("it is read-only");
    } else if (disk.shareable) {
      keep("it is shareable");
    } else if (const auto need = others->find(*path); need != others->end()) {
      keep(need->second.is_backing ? fmt::format("domain '{}' needs it as a backing file", need->second.domain)
                                   : fmt::format("domain '{}' uses it", need->second.domain));
    } else if (removed_.insert(disk.source).second) {
      check_unused(disk, *path);
      operation_.remove_image(disk.source);
    }
  }
  std::vector<std::string> files = request_.files;
  if (const auto nvram = definition_.nvram_path()) files.push_back(*nvram);
  for (const std::string& file : files) {
    const auto path = host_.layout().resolve(file);
    if (!path || removed_.contains(file)) continue;
    if (const auto need = others->find(*path); need != others->end()) {
      operation_.plan().notes.push_back(fmt::format("{} stays, domain '{}' needs it", file, need->second.domain));
    } else {
      removed_.insert(file);
      operation_.remove_image(file);
    }
  }
}

void Undefining::remove_points(MetadataEdit& metadata) {
  std::map<std::string, std::pair<Disk, std::vector<std::string>>> images;
  for (const SnapshotSummary& summary : metadata.tree().snapshots()) {
    const auto snapshot = preflight_.accept(metadata.edit(summary.name));
    if (!snapshot) continue;
    const auto uses = preflight_.accept(snapshot_disks(host_.layout(), **snapshot, &definition_));
    if (!uses) continue;
    for (const SnapshotDiskUse& use : *uses) {
      if (use.mode != SnapshotMode::kInternal || !stays(use.disk.source)) continue;
      if (!host_.layout().resolve(use.disk.source)) continue;  // what is gone holds no points
      auto& [disk, names] = images.try_emplace(use.disk.source, use.disk, std::vector<std::string>{}).first->second;
      names.push_back(summary.name);
    }
  }
  DiskOpener opener(host_, request_.domain, preflight_, operation_.plan());
  for (auto& [path, work] : images) {
    auto disk = opener.open(work.first);
    if (!disk) continue;
    DiskChange change;
    for (const std::string& name : work.second) {
      if (disk->find(name)) change.remove.push_back(name);
    }
    if (!change.remove.empty()) tasks_.push_back({.disk = std::move(*disk), .change = std::move(change)});
  }
}

}  // namespace

Result<Operation> plan_undefine_domain(Host& host, const UndefineDomainRequest& request) {
  TRY(host.check_writable());
  if (request.snapshots || request.storage) TRY(host.check_images_are_here());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  const std::string failure = fmt::format("domain '{}' is not undefined", request.domain);
  Operation operation(host, std::move(domain.lock), request.domain, fmt::format("undefine '{}'", request.domain),
                      failure);
  operation.set_command(fmt::format("vm undefine '{}'{}{}", request.domain, request.snapshots ? " --snapshots" : "",
                                    request.storage ? " --storage" : ""));

  Preflight preflight(failure);
  const std::vector<std::string> names = TRY(host.metadata().names(request.domain));
  if (!names.empty() && !request.snapshots) {
    preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("it has {} snapshot{}: {}", names.size(),
                                                                 names.size() == 1 ? "" : "s", list_of(names)))
                         .with_note("`--snapshots` removes them with it, in the images too; `--storage` removes its "
                                    "disks as well"));
  }
  if (const DomainState state = TRY(host.state(request.domain)); state != DomainState::kShutOff) {
    preflight.refuse(make_error(ErrorKind::kInUse, fmt::format("it is {}", name_of(state)))
                         .with_note(fmt::format("shut it down first: `virsh shutdown '{}'`", request.domain)));
  }
  if (host.machines() != nullptr && TRY(host.has_saved_memory(request.domain))) {
    preflight.refuse(make_error(ErrorKind::kRefused, "its memory was saved when it stopped (managed save)")
                         .with_note(fmt::format("`virsh managedsave-remove '{}'` throws it away", request.domain)));
  }
  refuse_checkpoints(host, request.domain, preflight);
  Undefining undefining(host, request, domain.definition, operation, preflight);
  if (request.storage) undefining.remove_storage();
  if (request.snapshots && !names.empty()) {
    MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
    undefining.remove_points(metadata);
    operation.expect(metadata.still_valid());
  }
  TRY(std::move(preflight).finish());

  for (DiskTask& task : undefining.take_tasks()) operation.add(std::move(task));
  std::vector<FileChange> changes;
  if (request.snapshots) {
    for (const std::string& name : names) changes.push_back(host.metadata().removing(request.domain, name));
  }
  changes.push_back(host.definitions().removing(request.domain));
  operation.add(std::move(changes));
  operation.expect_definition(domain.definition);
  operation.expect([&host, name = request.domain]() -> Result<void> {
    if (TRY(host.state(name)) == DomainState::kShutOff) return {};
    return make_error(ErrorKind::kInUse, fmt::format("somebody has started '{}' meanwhile", name));
  });
  // Whoever was asked whether it may go took his time.
  operation.expect([&host, name = request.domain, going = undefining.removed()]() -> Result<void> {
    if (going.empty()) return {};
    const auto needs = TRY(images_needed(host, name));
    for (const std::string& path : going) {
      const auto resolved = host.layout().resolve(path);
      if (!resolved || !needs.contains(*resolved)) continue;
      return make_error(ErrorKind::kInUse, fmt::format("domain '{}' needs {} by now", needs.at(*resolved).domain, path))
          .with_note("give the command again, and it stays");
    }
    return {};
  });
  operation.remove_directory(Layout::snapshots_directory(request.domain));
  return operation;
}

}  // namespace varve
