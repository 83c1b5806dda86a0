#include "operation/machine_snapshot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <string_view>

#include "base/unique_fd.h"
#include "operation/disk_selection.h"

namespace varve {

namespace {

constexpr const char* kSafetyPrefix = "varve-safety-";
constexpr unsigned long kDeletesExternal = 9000000;
constexpr unsigned long kRevertsToExternal = 9009000;

std::string number_of(unsigned long version) {
  return fmt::format("{}.{}.{}", version / 1000000, version / 1000 % 1000, version % 1000);
}

// Whether this process may open what it would have to change. That something is missing or of another kind, the plans
// for images of this host say better.
bool may_open_images(const Host& host, const DomainDocument& definition) {
  if (!host.machines()->has_images_here()) return false;
  return std::ranges::all_of(definition.disks(), [&](const Disk& disk) {
    if (!disk.in_snapshots_by_default() || disk.source.empty()) return true;
    if (!disk.is_local_file()) return false;
    const auto path = host.layout().resolve(disk.source);
    if (!path) return path.error().kind != ErrorKind::kPermission;
    return ::access(path->c_str(), R_OK | W_OK) == 0 || errno != EACCES;
  });
}

bool is_external(const SnapshotSummary& snapshot) {
  return snapshot.has_external_disk || snapshot.memory == SnapshotMode::kExternal;
}

// As libvirt calls an overlay of which it is told no name: the image's, with the snapshot's in place of its suffix.
std::string overlay_name(const std::string& image, const std::string& snapshot) {
  const size_t slash = image.rfind('/');
  const size_t dot = image.rfind('.');
  const bool has_suffix = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1);
  return fmt::format("{}.{}", has_suffix ? image.substr(0, dot) : image, snapshot);
}

// What a snapshot is to be, and every reason why it can't be that.
class MachineSnapshotPlanner {
 public:
  MachineSnapshotPlanner(const Host& host, const DomainDocument& definition, DomainState state, Preflight& preflight)
      : host_(host), definition_(definition), is_active_(state != DomainState::kShutOff), preflight_(preflight) {}

  std::vector<SnapshotDisk> choose_disks(const CreateSnapshotRequest& request, const std::string& name);
  SnapshotMemory choose_memory(const CreateSnapshotRequest& request, const std::string& name);
  void check_together(const SnapshotMemory& memory, const std::vector<SnapshotDisk>& disks);
  void check_options(const CreateSnapshotRequest& request, const SnapshotMemory& memory);

 private:
  void refuse(std::string reason, std::string remedy) {
    preflight_.refuse(make_error(ErrorKind::kRefused, std::move(reason)).with_note(std::move(remedy)));
  }
  void check_free(const std::string& path, const std::string& what);
  void check_internal(const Disk& disk);

  const Host& host_;
  const DomainDocument& definition_;
  bool is_active_;
  Preflight& preflight_;
};

void MachineSnapshotPlanner::check_free(const std::string& path, const std::string& what) {
  if (!host_.machines()->has_images_here() || !host_.layout().resolve(path)) return;
  refuse(fmt::format("{} would be {}, and there is such a file", what, path), "choose another name, or move it away");
}

void MachineSnapshotPlanner::check_internal(const Disk& disk) {
  if (disk.format == "qcow2") return;
  refuse(fmt::format("disk {} is {}, and only a qcow2 image holds snapshots inside", disk.target,
                     disk.format.empty() ? "of a format that nobody recorded" : disk.format),
         fmt::format("`--disk-only` puts an overlay upon it, `--disk {}=no` leaves it out", disk.target));
}

std::vector<SnapshotDisk> MachineSnapshotPlanner::choose_disks(const CreateSnapshotRequest& request,
                                                               const std::string& name) {
  for (const auto& [target, mode] : request.disks) {
    if (definition_.disk(target) != nullptr) continue;
    refuse(fmt::format("there is no disk {}", target), fmt::format("`varve vm show '{}'` lists them", request.domain));
  }
  // Of a running machine, QEMU keeps no point inside of an image without the memory.
  const bool wants_external =
      request.mode == SnapshotMode::kExternal || (is_active_ && request.memory == SnapshotMemoryWish::kDiskOnly);
  const SnapshotMode usual = wants_external ? SnapshotMode::kExternal : SnapshotMode::kInternal;
  std::vector<SnapshotDisk> disks;
  std::set<std::string> overlays;
  bool any = false;
  for (const Disk& disk : definition_.disks()) {
    SnapshotDisk chosen{.name = disk.target, .mode = SnapshotMode::kNo, .format = {}, .source = {}};
    if (disk.in_snapshots_by_default()) chosen.mode = disk.snapshot == SnapshotMode::kDefault ? usual : disk.snapshot;
    if (const auto said = request.disks.find(disk.target); said != request.disks.end()) chosen.mode = said->second;
    if (chosen.mode == SnapshotMode::kInternal) check_internal(disk);
    if (chosen.mode == SnapshotMode::kExternal) {
      chosen.format = "qcow2";
      chosen.source = overlay_name(disk.source, name);
      if (disk.source_type == DiskSourceType::kFile && !disk.source.empty()) {
        check_free(chosen.source, fmt::format("the overlay of disk {}", disk.target));
        if (!overlays.insert(chosen.source).second) {
          refuse(fmt::format("the overlays of two disks would be the same file, {}", chosen.source),
                 fmt::format("`--disk {}=no` leaves one of them out; `virsh snapshot-create-as --diskspec` gives them "
                             "names of their own",
                             disk.target));
        }
      } else {
        refuse(fmt::format("disk {} is no file, and nobody says where its overlay would be", disk.target),
               fmt::format("`--disk {}=no` leaves it out", disk.target));
      }
    }
    any = any || chosen.mode != SnapshotMode::kNo;
    disks.push_back(std::move(chosen));
  }
  // What has no disk has its memory.
  any = any || (definition_.disks().empty() && is_active_ && request.memory != SnapshotMemoryWish::kDiskOnly);
  if (!any) refuse("no disk is selected for the snapshot", "read-only disks and those with snapshot='no' are left out");
  return disks;
}

SnapshotMemory MachineSnapshotPlanner::choose_memory(const CreateSnapshotRequest& request, const std::string& name) {
  SnapshotMemory memory;
  if (request.memory == SnapshotMemoryWish::kDiskOnly) return memory;
  if (!is_active_) {
    if (request.memory == SnapshotMemoryWish::kWanted || !request.memory_file.empty()) {
      refuse("the machine is shut off: there is no memory to keep", "leave out --memory");
    }
    return memory;
  }
  memory.mode = request.mode;
  if (memory.mode == SnapshotMode::kExternal) {
    if (!request.memory_file.empty() && !request.memory_file.starts_with('/')) {
      refuse(fmt::format("the file for its memory, {}, is no absolute path", request.memory_file),
             "libvirtd has another working directory: begin it with /");
    }
    memory.file =
        request.memory_file.empty()
            ? fmt::format("{}/{}.{}.mem", host_.layout().shown(Layout::save_directory()), request.domain, name)
            : request.memory_file;
    check_free(memory.file, "the file of its memory");
  }
  const xml::Element* devices = definition_.root().child("devices");
  const auto without_memory = "`--disk-only` takes a snapshot of the disks; of a machine that is shut off, all works";
  if (devices != nullptr && devices->child("hostdev") != nullptr) {
    refuse("it has a device of this host, whose state nobody can save with the memory", without_memory);
  }
  if (devices != nullptr && std::ranges::any_of(devices->children("filesystem"), [](const xml::Element* system) {
        const xml::Element* driver = system->child("driver");
        return driver != nullptr && driver->attribute("type") == "virtiofs";
      })) {
    refuse("it has a virtiofs file system, whose state nobody can save with the memory", without_memory);
  }
  if (memory.mode == SnapshotMode::kInternal && definition_.firmware_is_uefi()) {
    const xml::Element* nvram = definition_.root().find("os/nvram");
    if (nvram == nullptr || nvram->attribute("format") != "qcow2") {
      refuse(
          "its UEFI firmware keeps its variables in a raw file, which a snapshot inside of images can't hold while "
          "it runs",
          "`--mode external` keeps memory and disks in files of their own; shut off, an internal one works");
    }
  }
  return memory;
}

void MachineSnapshotPlanner::check_together(const SnapshotMemory& memory, const std::vector<SnapshotDisk>& disks) {
  const auto first_with = [&](SnapshotMode mode) { return std::ranges::find(disks, mode, &SnapshotDisk::mode); };
  const auto internal = first_with(SnapshotMode::kInternal);
  const auto external = first_with(SnapshotMode::kExternal);
  if (!is_active_ && internal != disks.end() && external != disks.end()) {
    refuse(fmt::format("disk {} would be kept as 'internal' and disk {} as 'external', and libvirt mixes them not",
                       internal->name, external->name),
           fmt::format("`--mode external` keeps all of them below overlays, `--disk {}=no` leaves one out",
                       external->name));
  }
  for (const SnapshotDisk& disk : disks) {
    const bool differs = (disk.mode == SnapshotMode::kInternal && memory.mode == SnapshotMode::kExternal) ||
                         (disk.mode == SnapshotMode::kExternal && memory.mode == SnapshotMode::kInternal);
    if (differs) {
      refuse(fmt::format("disk {} would be kept as '{}' and the memory as '{}', and libvirt mixes them not", disk.name,
                         name_of(disk.mode), name_of(memory.mode)),
             "`--mode external` keeps all of it in files of their own, `--disk-only` leaves the memory out");
    }
    if (memory.mode == SnapshotMode::kInternal && disk.mode == SnapshotMode::kNo &&
        definition_.disk(disk.name)->in_snapshots_by_default()) {
      refuse(fmt::format("disk {} can't be left out: QEMU keeps the memory inside of an image only with all disks",
                         disk.name),
             "`--disk-only` or `--mode external` takes the others without it");
    }
    if (is_active_ && disk.mode == SnapshotMode::kInternal && memory.mode == SnapshotMode::kNo) {
      refuse(
          fmt::format("disk {} can't be kept inside of its image without the memory while the machine runs", disk.name),
          fmt::format("leave out --disk-only, or say `--disk {}=external`", disk.name));
    }
  }
}

void MachineSnapshotPlanner::check_options(const CreateSnapshotRequest& request, const SnapshotMemory& memory) {
  if (request.quiesce && (!is_active_ || request.memory != SnapshotMemoryWish::kDiskOnly)) {
    refuse("--quiesce freezes the file systems of a running guest for a snapshot without its memory",
           "say --disk-only with it; with the memory, nothing needs to be frozen");
  }
  if (request.live && memory.mode != SnapshotMode::kExternal) {
    refuse("--live lets the machine go on while its memory is written to a file of its own",
           "say `--mode external` with it");
  }
  refuse_checkpoints(host_, request.domain, preflight_);
}

// One line for the plan.
std::string described(const std::string& domain, DomainState state, const SnapshotMemory& memory,
                      const std::vector<SnapshotDisk>& disks) {
  std::vector<std::string> parts;
  if (memory.mode == SnapshotMode::kInternal) parts.emplace_back("its memory inside of an image");
  if (memory.mode == SnapshotMode::kExternal) parts.push_back(fmt::format("its memory in {}", memory.file));
  for (const SnapshotDisk& disk : disks) {
    if (disk.mode == SnapshotMode::kInternal) parts.push_back(fmt::format("disk {} inside of its image", disk.name));
    if (disk.mode == SnapshotMode::kExternal) {
      parts.push_back(fmt::format("disk {} below a new overlay, {}", disk.name, disk.source));
    }
  }
  return fmt::format("have libvirtd take a snapshot of '{}' ({}): {}", domain, name_of(state), fmt::join(parts, ", "));
}

Result<MachineSnapshot> plan_snapshot(const Host& host, const DomainDocument& definition, DomainState state,
                                      const std::string& name, const CreateSnapshotRequest& request,
                                      Preflight& preflight, std::string& step) {
  MachineSnapshotPlanner planner(host, definition, state, preflight);
  NewSnapshot spec;
  spec.name = name;
  spec.description = request.description;
  spec.creation_time = static_cast<int64_t>(request.now_sec);
  spec.disks = planner.choose_disks(request, name);
  spec.memory = planner.choose_memory(request, name);
  planner.check_together(spec.memory, spec.disks);
  planner.check_options(request, spec.memory);
  step = described(request.domain, state, spec.memory, spec.disks);
  MachineSnapshot snapshot;
  if (!preflight.ok()) return snapshot;
  snapshot.document = TRY(SnapshotDocument::create(definition, spec)).to_xml();
  snapshot.disk_only =
      std::ranges::any_of(spec.disks, [](const SnapshotDisk& disk) { return disk.mode == SnapshotMode::kExternal; }) &&
      spec.memory.mode == SnapshotMode::kNo;
  snapshot.live = request.live;
  snapshot.quiesce = request.quiesce;
  snapshot.quiesce_seconds = request.quiesce_seconds;
  return snapshot;
}

// So that the next revert knows it for one that it may replace.
Result<void> mark_as_safety(Host& host, const std::string& domain, const std::string& name) {
  SnapshotDocument document = TRY(host.metadata().load(domain, name));
  TRY(document.set_note("safety", "yes"));
  return host.writer().write(MetadataStore::saving(domain, document));
}

// Metadata may name any file. Only what libvirt saved a machine's memory to is taken for that: its head says so.
Result<void> remove_memory_image(Host& host, const std::string& root_path) {
  const auto path = host.layout().resolve(root_path);
  if (!path && path.error().kind == ErrorKind::kNotFound) return {};
  if (!path) return path.error();
  constexpr std::string_view kHead = "LibvirtQemudSave";
  std::string head(kHead.size(), '\0');
  {
    const UniqueFd file(::open(path->c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!file) return system_error(errno, fmt::format("can't open {}", *path), *path);
    if (::pread(file.get(), head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()) || head != kHead) {
      return make_error(ErrorKind::kRefused, fmt::format("{} is no memory image of libvirt's", *path));
    }
  }
  return host.writer().write({.path = root_path, .contents = std::nullopt});
}

Error appeared_meanwhile(const std::string& name) {
  return make_error(ErrorKind::kInUse, fmt::format("snapshot '{}' was changed by somebody else just now", name))
      .with_note("give the command again");
}

void check_version_for(const Host& host, unsigned long needed, const std::string& what, const std::string& remedy,
                       Preflight& preflight) {
  const auto version = preflight.accept(host.machines()->version());
  if (!version || *version >= needed) return;
  preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("{} is possible from libvirt {} on, and this is {}",
                                                               what, number_of(needed), number_of(*version)))
                       .with_note(remedy));
}

}  // namespace

std::string safety_name_for(uint64_t number) {
  return kSafetyPrefix + std::to_string(number);
}

std::string safety_description(const std::string& reverted_to) {
  return fmt::format("Made by varve before it went back to '{}'; the next revert replaces it.", reverted_to);
}

Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, const CreateSnapshotRequest& request) {
  if (host.machines() == nullptr) return false;
  const auto is_elsewhere = [](SnapshotMode mode) {
    return mode == SnapshotMode::kExternal || mode == SnapshotMode::kManual;
  };
  const bool wants_external = std::ranges::any_of(definition.disks(), [&](const Disk& disk) {
    const auto said = request.disks.find(disk.target);
    return said != request.disks.end() ? is_elsewhere(said->second)
                                       : disk.in_snapshots_by_default() && is_elsewhere(disk.snapshot);
  });
  return request.mode == SnapshotMode::kExternal || wants_external || request.live || request.quiesce ||
         request.memory == SnapshotMemoryWish::kWanted || TRY(host.state(request.domain)) != DomainState::kShutOff ||
         !may_open_images(host, definition);
}

Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, const SnapshotDocument& snapshot,
                             const RevertSnapshotRequest& request) {
  if (host.machines() == nullptr) return false;
  if (TRY(host.state(request.domain)) != DomainState::kShutOff || !may_open_images(host, definition)) return true;
  if (!request.disks.empty()) return false;
  const SnapshotSummary summary = snapshot.summary();
  return summary.memory != SnapshotMode::kNo || is_external(summary) || request.after != AfterRevert::kAsThen;
}

Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, MetadataEdit& metadata,
                             const DeleteSnapshotRequest& request) {
  if (host.machines() == nullptr || request.metadata_only) return false;
  if (TRY(host.state(request.domain)) != DomainState::kShutOff || !may_open_images(host, definition)) return true;
  const SnapshotSummary* snapshot = metadata.tree().find(request.name);
  if (snapshot == nullptr) return appeared_meanwhile(request.name);
  if (is_external(*snapshot)) return true;
  return request.children && std::ranges::any_of(metadata.tree().descendants(request.name),
                                                 [](const SnapshotSummary* child) { return is_external(*child); });
}

Result<Operation> plan_machine_snapshot(Host& host, LockedDomain domain, const std::string& name,
                                        const CreateSnapshotRequest& request) {
  const std::string failure = fmt::format("snapshot '{}' of '{}' is not created", name, request.domain);
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("create snapshot '{}' of '{}'", name, request.domain), failure);
  operation.set_snapshot(name);
  Machines& machines = *host.machines();
  const DomainDocument definition = TRY(machines.present_definition(request.domain));
  const MetadataEdit metadata = TRY(MetadataEdit::begin(host.metadata(), request.domain));
  Preflight preflight(failure);
  if (metadata.has(name)) {
    preflight.refuse(
        make_error(ErrorKind::kAlreadyExists, "there is a snapshot of that name").with_note("choose another name"));
  }
  std::string step;
  MachineSnapshot snapshot =
      TRY(plan_snapshot(host, definition, TRY(host.state(request.domain)), name, request, preflight, step));
  TRY(std::move(preflight).finish());
  operation.plan().checks.push_back(fmt::format("libvirt {} can do that", number_of(TRY(machines.version()))));
  operation.expect(metadata.still_valid());
  operation.delegate(step, [&machines, domain_name = request.domain, snapshot](const Watch& watch) {
    return machines.create_snapshot(domain_name, snapshot, watch);
  });
  return operation;
}

Result<RevertSnapshot> plan_machine_revert(Host& host, LockedDomain domain, const SnapshotDocument& snapshot,
                                           MetadataEdit& metadata, const RevertSnapshotRequest& request) {
  const std::string failure = fmt::format("snapshot '{}' of '{}' is not reverted", request.name, request.domain);
  RevertSnapshot revert{
      .operation = Operation(host, std::move(domain.lock), request.domain,
                             fmt::format("revert '{}' to snapshot '{}'", request.domain, request.name), failure),
      .safety_name = {}};
  Operation& operation = revert.operation;
  operation.set_snapshot(request.name);
  Machines& machines = *host.machines();
  const DomainState state = TRY(host.state(request.domain));
  Preflight preflight(failure);
  if (!request.disks.empty()) {
    preflight.refuse(make_error(ErrorKind::kRefused,
                                fmt::format("it is {}, and libvirtd takes back all disks or none", name_of(state)))
                         .with_note(state == DomainState::kShutOff
                                        ? "somebody who may open its images can: `sudo varve …`"
                                        : fmt::format("shut it down first: `virsh shutdown '{}'`", request.domain)));
  }
  if (is_external(snapshot.summary())) {
    check_version_for(
        host, kRevertsToExternal, "going back to an external snapshot",
        fmt::format("`varve where '{}' '{}'` shows the files that it is made of", request.domain, request.name),
        preflight);
  }
  operation.expect(metadata.still_valid());
  if (request.safety) {
    uint64_t number = request.now_sec;
    while (metadata.has(safety_name_for(number))) ++number;
    revert.safety_name = safety_name_for(number);
    CreateSnapshotRequest keep;
    keep.domain = request.domain;
    keep.description = safety_description(request.name);
    keep.now_sec = request.now_sec;
    std::string step;
    Preflight own("its present state can't be kept");
    const DomainDocument definition = TRY(machines.present_definition(request.domain));
    MachineSnapshot kept = TRY(plan_snapshot(host, definition, state, revert.safety_name, keep, own, step));
    if (auto possible = std::move(own).finish(); !possible) {
      preflight.refuse(std::move(possible).error().with_note("`--no-safety` goes back without keeping it"));
    }
    operation.delegate(step,
                       [&host, domain_name = request.domain, name = revert.safety_name,
                        kept = std::move(kept)](const Watch& watch) -> Result<void> {
                         TRY(host.machines()->create_snapshot(domain_name, kept, watch));
                         return mark_as_safety(host, domain_name, name);
                       });
  }
  TRY(std::move(preflight).finish());
  operation.delegate(
      fmt::format("have libvirtd take '{}' ({}) back to '{}'", request.domain, name_of(state), request.name),
      [&machines, request](const Watch& watch) {
        return machines.revert(request.domain, request.name, request.after, watch);
      });
  if (!request.safety) return revert;
  for (const SnapshotSummary& earlier : metadata.tree().snapshots()) {
    if (!earlier.safety || earlier.is_protected || earlier.name == request.name || is_external(earlier)) continue;
    operation.delegate(
        fmt::format("have libvirtd delete the earlier safety snapshot '{}'", earlier.name),
        [&machines, domain_name = request.domain, name = earlier.name](const Watch& watch) {
          return machines.remove(domain_name, name, false, watch);
        },
        Operation::Need::kBestEffort);
  }
  return revert;
}

Result<Operation> plan_machine_delete(Host& host, LockedDomain domain, MetadataEdit& metadata,
                                      const DeleteSnapshotRequest& request) {
  const std::string failure = fmt::format("snapshot '{}' of '{}' is not deleted", request.name, request.domain);
  Operation operation(host, std::move(domain.lock), request.domain,
                      fmt::format("delete snapshot '{}' of '{}'", request.name, request.domain), failure);
  operation.set_snapshot(request.name);
  Machines& machines = *host.machines();
  const SnapshotSummary* first = metadata.tree().find(request.name);
  if (first == nullptr) return appeared_meanwhile(request.name);
  std::vector<const SnapshotSummary*> going = {first};
  if (request.children) {
    for (const SnapshotSummary* child : metadata.tree().descendants(request.name)) going.push_back(child);
  }
  Preflight preflight(failure);
  std::vector<std::string> memory_files;
  for (const SnapshotSummary* snapshot : going) {
    if (snapshot->memory == SnapshotMode::kExternal && machines.has_images_here()) {
      memory_files.push_back((*TRY(metadata.edit(snapshot->name))).memory().file);
    }
    if (snapshot->is_protected) {
      preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("snapshot '{}' is protected", snapshot->name)));
    }
  }
  if (std::ranges::any_of(going, [](const SnapshotSummary* snapshot) { return is_external(*snapshot); })) {
    check_version_for(host, kDeletesExternal, "deleting an external snapshot",
                      "`virsh blockcommit` merges its overlay by hand; `--metadata-only` forgets it", preflight);
  }
  TRY(std::move(preflight).finish());
  operation.expect(metadata.still_valid());
  operation.delegate(
      fmt::format("have libvirtd delete {} snapshot{} of '{}' ({}): {}", going.size(), going.size() == 1 ? "" : "s",
                  request.domain, name_of(TRY(host.state(request.domain))), going.front()->name),
      [&machines, request](const Watch& watch) {
        return machines.remove(request.domain, request.name, request.children, watch);
      });
  // libvirt 9.0 leaves them.
  for (const std::string& file : memory_files) {
    operation.delegate(
        fmt::format("remove the memory image {}", file),
        [&host, file](const Watch&) { return remove_memory_image(host, file); }, Operation::Need::kBestEffort);
  }
  return operation;
}

}  // namespace varve
