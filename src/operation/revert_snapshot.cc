#include "operation/revert_snapshot.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "host/image_needs.h"
#include "operation/disk_selection.h"
#include "operation/machine_snapshot.h"
#include "operation/metadata_edit.h"

namespace varve {

namespace {

// An image that is changed, with all that happens to it, under its path as the definition has it.
using Tasks = std::map<std::string, DiskTask>;

Error was_another_image(const SnapshotDiskUse& use, const Disk& today, const std::string& domain) {
  return make_error(ErrorKind::kRefused,
                    fmt::format("disk {} was {} then and is {} today", use.disk.target, use.disk.source, today.source))
      .with_note(fmt::format("the old image may be the backing file of the new one, which a revert would break; define "
                             "'{}' with the old image again if that is what you want",
                             domain));
}

class Reverting {
 public:
  Reverting(Host& host, const RevertSnapshotRequest& request, const DomainDocument& definition, MetadataEdit& metadata,
            Operation& operation, Preflight& preflight)
      : request_(request),
        host_(host),
        definition_(definition),
        metadata_(metadata),
        plan_(operation.plan()),
        preflight_(preflight),
        opener_(host, request.domain, preflight, plan_) {}

  void choose_disks(const SnapshotDocument& snapshot);
  Result<std::string> keep_present_state();
  void prune_safety_snapshots();

  Tasks& tasks() { return tasks_; }
  const std::vector<SnapshotDiskUse>& reverted() const { return reverted_; }

 private:
  bool is_wanted(const Disk& disk) const { return request_.disks.empty() || request_.disks.contains(disk.target); }
  void check_wanted_disks(const std::vector<SnapshotDiskUse>& uses);
  void check_same_image(const SnapshotDiskUse& use);
  void check_other_domains();
  std::string safety_name() const;
  std::string parent_of_present_state() const;
  bool prune_points(const SnapshotDocument& safety);

  const RevertSnapshotRequest& request_;
  Host& host_;
  const DomainDocument& definition_;
  MetadataEdit& metadata_;
  Plan& plan_;
  Preflight& preflight_;
  DiskOpener opener_;
  Tasks tasks_;
  std::vector<SnapshotDiskUse> reverted_;
  std::set<std::string> pruned_;  // earlier safety snapshots
};

void Reverting::check_wanted_disks(const std::vector<SnapshotDiskUse>& uses) {
  for (const std::string& target : request_.disks) {
    if (std::ranges::any_of(uses, [&](const SnapshotDiskUse& use) { return use.disk.target == target; })) continue;
    std::vector<std::string> there;
    for (const SnapshotDiskUse& use : uses) there.push_back(use.disk.target);
    preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("disk {} is not part of it", target))
                          .with_note(fmt::format("it is made of {}", there.empty() ? "no disk" : list_of(there, 30))));
  }
}

// Where overlays were put upon the image since, it is another image's backing file: writing to it would break them.
void Reverting::check_same_image(const SnapshotDiskUse& use) {
  const Disk* today = definition_.disk(use.disk.target);
  if (today == nullptr || use.moved) return;
  const auto path_then = host_.layout().resolve(use.disk.source);
  const auto path_today = host_.layout().resolve(today->source);
  if (!path_then || !path_today || *path_then == *path_today) return;
  preflight_.refuse(was_another_image(use, *today, request_.domain));
}

// An overlay of another domain shows what its backing file holds: a revert would change that disk under it.
void Reverting::check_other_domains() {
  const auto others = images_needed(host_, request_.domain);
  if (!others) {
    plan_.notes.push_back(
        fmt::format("nobody knows whether other domains need these images: {}", others.error().message));
    return;
  }
  for (const SnapshotDiskUse& use : reverted_) {
    const auto path = host_.layout().resolve(use.disk.source);
    const auto need = path ? others->find(*path) : others->end();
    if (need == others->end()) continue;
    const std::string& other = need->second.domain;
    if (need->second.is_backing) {
      preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("disk {}: {} is a backing file of domain '{}', "
                                                                    "whose disk would change with it",
                                                                    use.disk.target, use.disk.source, other))
                            .with_note(fmt::format("`varve image convert` makes a disk of '{}' that stands alone; "
                                                   "define that one, then revert",
                                                   other)));
    } else {
      plan_.notes.push_back(fmt::format("disk {}: {} is a disk of domain '{}' too, which is reverted with it",
                                        use.disk.target, use.disk.source, other));
    }
  }
}

void Reverting::choose_disks(const SnapshotDocument& snapshot) {
  std::vector<SnapshotDiskUse> uses = internal_disks_of(host_, snapshot, definition_, "reverted to", preflight_);
  check_wanted_disks(uses);
  for (SnapshotDiskUse& use : uses) {
    if (!is_wanted(use.disk)) continue;
    check_same_image(use);
    auto disk = opener_.open(use.disk);
    if (!disk) continue;
    if (!disk->find(request_.name)) {
      preflight_.refuse(missing_point(*disk));
      continue;
    }
    preflight_.accept(disk->check_usable(request_.name));
    DiskTask task{.disk = std::move(*disk), .change = {}};
    task.change.revert_to = request_.name;
    tasks_.emplace(use.disk.source, std::move(task));
    reverted_.push_back(std::move(use));
  }
  check_other_domains();
}

std::string Reverting::safety_name() const {
  for (uint64_t number = request_.now_sec;; ++number) {
    std::string name = safety_name_for(number);
    const bool taken = metadata_.has(name) || std::ranges::any_of(tasks_, [&](const auto& task) {
                         return task.second.disk.find(name).has_value();
                       });
    if (!taken) return name;
  }
}

// The current snapshot, or what remains above it.
std::string Reverting::parent_of_present_state() const {
  const SnapshotSummary* parent = metadata_.tree().current();
  while (parent != nullptr && pruned_.contains(parent->name)) parent = metadata_.tree().parent(parent->name);
  return parent == nullptr ? "" : parent->name;
}

// The disks that are about to change, and the definition, under a name of their own.
Result<std::string> Reverting::keep_present_state() {
  NewSnapshot spec;
  spec.name = safety_name();
  spec.description = safety_description(request_.name);
  spec.parent = parent_of_present_state();
  spec.creation_time = static_cast<int64_t>(request_.now_sec);
  spec.current = false;
  spec.notes = {{"safety", "yes"}};
  for (const Disk& disk : definition_.disks()) {
    SnapshotDisk mode{.name = disk.target, .mode = SnapshotMode::kNo, .format = {}, .source = {}};
    if (const auto task = tasks_.find(disk.source); disk.is_local_file() && task != tasks_.end()) {
      task->second.change.create = qcow2::SnapshotSpec{
          .name = spec.name, .date_sec = static_cast<uint32_t>(request_.now_sec), .date_nsec = request_.now_nsec};
      mode.mode = SnapshotMode::kInternal;
    }
    spec.disks.push_back(std::move(mode));
  }
  for (const auto& [path, task] : tasks_) {
    if (task.change.revert_to && !task.change.create) {
      plan_.notes.push_back(
          fmt::format("{} is no disk of '{}' today: its present state is not kept", path, request_.domain));
    }
  }
  metadata_.add(TRY(SnapshotDocument::create(definition_, spec)));
  return spec.name;
}

// False where an image can't be had: then the old safety snapshot stays as it is.
bool Reverting::prune_points(const SnapshotDocument& safety) {
  Preflight own("");
  Plan unsaid;
  DiskOpener opener(host_, request_.domain, own, unsaid);
  std::vector<DiskTask> more;
  for (const SnapshotDiskUse& use : internal_disks_of(host_, safety, definition_, "deleted", own)) {
    if (const auto task = tasks_.find(use.disk.source); task != tasks_.end()) continue;
    auto disk = opener.open(use.disk);
    if (disk && disk->find(safety.name())) more.push_back({.disk = std::move(*disk), .change = {}});
  }
  if (!own.ok()) return false;
  for (DiskTask& task : more) {
    const std::string path = task.disk.path();
    tasks_.emplace(path, std::move(task));
  }
  for (auto& [path, task] : tasks_) {
    if (task.disk.find(safety.name())) task.change.remove.push_back(safety.name());
  }
  return true;
}

void Reverting::prune_safety_snapshots() {
  for (const SnapshotSummary& snapshot : metadata_.tree().snapshots()) {
    if (!snapshot.safety || snapshot.is_protected || snapshot.name == request_.name) continue;
    const auto document = metadata_.edit(snapshot.name);
    if (document && prune_points(**document)) {
      pruned_.insert(snapshot.name);
    } else {
      plan_.notes.push_back(
          fmt::format("the safety snapshot '{}' stays: not all of its images are there, or free", snapshot.name));
    }
  }
  preflight_.accept(metadata_.remove(std::vector<std::string>(pruned_.begin(), pruned_.end())));
}

// The definition of that time, for the domain as it is called today and its images where they are today.
Result<std::optional<DomainDocument>> definition_of(const SnapshotDocument& snapshot, const DomainDocument& today,
                                                    const std::vector<SnapshotDiskUse>& uses, Plan& plan) {
  std::optional<DomainDocument> then = TRY(snapshot.inactive_domain());
  if (!then) {
    auto domain = snapshot.domain();
    if (!domain && domain.error().kind == ErrorKind::kNotFound) {
      plan.notes.emplace_back("the snapshot holds no definition: today's stays");
      return std::optional<DomainDocument>{};
    }
    if (!domain) return std::move(domain).error();
    then = std::move(*domain);
  }
  if (then->name() != today.name()) TRY(then->set_name(today.name()));
  if (then->uuid() != today.uuid() && !today.uuid().empty()) then->set_uuid(today.uuid());
  for (const SnapshotDiskUse& use : uses) {
    if (!use.moved) continue;
    TRY(then->set_disk_source(use.disk.target, use.disk.source));
    plan.notes.push_back(fmt::format("disk {} was {} then; the definition will say {}", use.disk.target,
                                     use.recorded_source, use.disk.source));
  }
  for (const Disk& disk : today.disks()) {
    if (then->disk(disk.target) != nullptr) continue;
    plan.notes.push_back(fmt::format("disk {} was not there then and will not be attached; its image {} stays",
                                     disk.target, disk.source));
  }
  if (then->firmware_is_uefi()) {
    plan.notes.emplace_back("the firmware's variables (NVRAM) are not part of a snapshot yet and stay as they are");
  }
  return then;
}

Error was_running() {
  return make_error(ErrorKind::kRefused,
                    "it was taken of a running machine, whose memory is in it, and a host in a directory can't run "
                    "machines yet")
      .with_note(
          "`--disk TARGET` takes disks alone back, as after a power cut; with a libvirtd, `virsh "
          "snapshot-revert` takes back all of it");
}

Error has_saved_memory(const std::string& domain) {
  return make_error(ErrorKind::kRefused,
                    "the machine's memory was saved when it stopped (managed save), and would go on with disks that "
                    "are others than it knows")
      .with_note(fmt::format("start it and shut it down first, or throw the memory away: `virsh managedsave-remove "
                             "'{}'`",
                             domain));
}

// What stands against a revert whoever does it. Images that are not here are told apart by their names.
Result<void> check_guards(Host& host, const SnapshotDocument& snapshot, const DomainDocument& definition,
                          const RevertSnapshotRequest& request, Preflight& preflight) {
  if (TRY(host.has_saved_memory(request.domain))) preflight.refuse(has_saved_memory(request.domain));
  refuse_checkpoints(host, request.domain, preflight);
  const DomainDocument today = TRY(host.machines()->present_definition(request.domain));
  for (const SnapshotDiskUse& use : TRY(snapshot_disks(host.layout(), snapshot, &definition))) {
    const Disk* disk = today.disk(use.disk.target);
    if (use.mode != SnapshotMode::kInternal || use.moved || disk == nullptr || disk->source == use.disk.source)
      continue;
    preflight.refuse(was_another_image(use, *disk, request.domain));
  }
  return {};
}

}  // namespace

Result<RevertSnapshot> plan_revert_snapshot(Host& host, const RevertSnapshotRequest& request) {
  TRY(host.check_writable());
  LockedDomain domain = TRY(host.open_domain(request.domain, DomainLock::Mode::kExclusive));
  MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  const SnapshotDocument snapshot = *TRY(metadata.edit(request.name));

  const std::string failure = fmt::format("snapshot '{}' of '{}' is not reverted", request.name, request.domain);
  if (TRY(is_for_machines(host, domain.definition, snapshot, request))) {
    Preflight guards(failure);
    TRY(check_guards(host, snapshot, domain.definition, request, guards));
    TRY(std::move(guards).finish());
    return plan_machine_revert(host, std::move(domain), snapshot, metadata, request);
  }
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("revert '{}' to snapshot '{}'", request.domain, request.name), failure);
  operation.set_snapshot(request.name);
  operation.set_command(fmt::format("snapshot revert '{}' '{}'", request.domain, request.name));

  Preflight preflight(failure);
  const SnapshotMode memory = snapshot.memory().mode;
  if (request.after != AfterRevert::kAsThen) {
    preflight.refuse(make_error(ErrorKind::kRefused,
                                "nobody can start the machine afterwards on a host without a "
                                "daemon, or for some of its disks")
                         .with_note("leave out --running and --paused"));
  }
  if (request.disks.empty() && (memory == SnapshotMode::kInternal || snapshot.state() == SnapshotState::kRunning ||
                                snapshot.state() == SnapshotState::kPaused)) {
    preflight.refuse(was_running());
  }
  if (TRY(host.has_saved_memory(request.domain))) preflight.refuse(has_saved_memory(request.domain));
  refuse_checkpoints(host, request.domain, preflight);
  Reverting reverting(host, request, domain.definition, metadata, operation, preflight);
  reverting.choose_disks(snapshot);
  if (!preflight.ok()) {
    Error error = std::move(std::move(preflight).finish()).error();
    error.notes.push_back(
        fmt::format("`varve where '{}' '{}'` shows what is there{}", request.domain, request.name,
                    reverting.reverted().empty()
                        ? ""
                        : fmt::format(", `--disk {0}` reverts {0} alone", reverting.reverted().front().disk.target)));
    return error;
  }

  std::string safety_name;
  if (request.safety) {
    reverting.prune_safety_snapshots();
    safety_name = TRY(reverting.keep_present_state());
  }
  TRY(std::move(preflight).finish());

  std::vector<FileChange> definition_change;
  if (request.disks.empty()) {
    const auto then = TRY(definition_of(snapshot, domain.definition, reverting.reverted(), operation.plan()));
    if (then && then->to_xml() != domain.definition.to_xml()) {
      definition_change.push_back(host.definitions().saving(*then));
    }
    TRY(metadata.set_current(request.name));
  }
  for (auto& [path, task] : reverting.tasks()) operation.add(std::move(task));
  operation.add(metadata.changes());
  operation.expect(metadata.still_valid());
  operation.expect_definition(domain.definition);
  operation.add(std::move(definition_change));
  return RevertSnapshot{.operation = std::move(operation), .safety_name = std::move(safety_name)};
}

}  // namespace varve
