#include "transfer/increment_base.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/paths.h"
#include "base/units.h"
#include "disk/snapshot_disks.h"
#include "domain/names.h"
#include "domain/snapshot_document.h"
#include "qcow2/snapshot_table.h"
#include "transfer/export_directory.h"

namespace varve {

namespace {

namespace fs = std::filesystem;

std::vector<std::string> snapshots_in(const Manifest& manifest) {
  std::vector<std::string> names;
  for (const ManifestFile& file : manifest.files) {
    if (file.role == FileRole::kSnapshot) names.push_back(fs::path(file.path).stem().string());
  }
  return names;
}

bool has_snapshot(const Manifest& manifest, const std::string& name) {
  const ManifestFile* file = manifest.find(Layout::snapshot(manifest.domain, name));
  return file != nullptr && file->role == FileRole::kSnapshot;
}

Result<void> check_uuid(const Manifest& manifest, const DomainDocument& definition, const std::string& directory) {
  if (manifest.uuid == definition.uuid()) return {};
  return make_error(ErrorKind::kRefused, fmt::format("the export in {} is of another machine that has the name '{}' "
                                                     "(UUID {}, and this one has {})",
                                                     directory, manifest.domain, manifest.uuid, definition.uuid()))
      .with_note("a full export does not need one: `varve vm export VM DIRECTORY`");
}

// Of two that were made in the same second, the one that stands on more is the newer one.
std::pair<int64_t, size_t> age(const ExportChain& chain) {
  return {chain.manifest().created_sec, chain.depth()};
}

std::string described(const qcow2::Snapshot& point) {
  return fmt::format("id {}, of {}", point.id, format_local_time(point.date_sec));
}

// Of a point that both have by its name.
bool is_same_point(const qcow2::Snapshot& one, const qcow2::Snapshot& other) {
  return one.id == other.id && one.date_sec == other.date_sec && one.date_nsec == other.date_nsec &&
         one.vm_clock_nsec == other.vm_clock_nsec && one.disk_size == other.disk_size;
}

Result<std::optional<qcow2::Snapshot>> point_in(BlockDevice& image, const std::string& name) {
  const qcow2::Header header = TRY(qcow2::read_header(image));
  const qcow2::SnapshotTable table = TRY(qcow2::read_snapshot_table(image, header));
  const auto index = qcow2::find_by_name(table.snapshots, name);
  return index ? std::optional(table.snapshots[*index]) : std::nullopt;
}

// One image that the snapshot lies in.
Result<void> check_same_point(const MachineFile& file, const ExportChain& base, const std::string& snapshot) {
  const ManifestFile* earlier = base.manifest().find(file.path);
  if (earlier == nullptr) return {};  // it has moved since, and goes along whole
  const auto here = TRY(point_in(*file.file, snapshot));
  const auto then = TRY(point_in(*TRY(base.open_file(file.path)), snapshot));
  if (here && then && is_same_point(*here, *then)) return {};
  return make_error(ErrorKind::kRefused, fmt::format("{} does not have the same snapshot '{}' as in the earlier export",
                                                     file.path, snapshot))
      .with_note(fmt::format("here: {}; in {}: {}", here ? described(*here) : "none", base.layout().root(),
                             then ? described(*then) : "none"));
}

}  // namespace

Result<ExportChain> open_base(const std::string& directory, const DomainDocument& definition) {
  ExportChain chain = TRY(ExportChain::open(TRY(Layout::open(directory)), definition.name()));
  TRY(check_uuid(chain.manifest(), definition, directory));
  return chain;
}

Result<ExportChain> find_base(const std::string& directory, const DomainDocument& definition,
                              const std::string& snapshot, std::vector<std::string>& notes) {
  const std::string parent = directory_of(directory);
  std::optional<ExportChain> newest;
  std::vector<std::string> others;  // exports of the machine that don't have the snapshot
  std::error_code failed;
  std::vector<std::string> beside;
  for (fs::directory_iterator at(parent, failed), end; at != end && !failed; at.increment(failed)) {
    if (at->is_directory(failed) && at->path() != directory) beside.push_back(at->path());
  }
  std::ranges::sort(beside);
  for (const std::string& path : beside) {
    auto layout = Layout::open(path);
    if (!layout || !layout->resolve(fmt::format("/{}{}", definition.name(), kManifestSuffix))) continue;
    auto chain = open_base(path, definition);
    if (!chain) {
      notes.push_back(fmt::format("{} is left out: {}", path, chain.error().message));
    } else if (!has_snapshot(chain->manifest(), snapshot)) {
      others.push_back(fmt::format("{} has {}", path, list_of(snapshots_in(chain->manifest()))));
    } else if (!newest || age(*newest) < age(*chain)) {
      newest = std::move(*chain);
    }
  }
  if (newest) return std::move(*newest);
  Error error = make_error(ErrorKind::kNotFound, fmt::format("no export of '{}' with the snapshot '{}' is in {}",
                                                             definition.name(), snapshot, parent));
  for (std::string& other : others) error.notes.push_back(std::move(other));
  for (const std::string& note : notes) error.notes.push_back(note);
  return std::move(error).with_note("`--base DIRECTORY` says where one is; a full export needs none, and no --since");
}

Result<void> check_same_snapshot(const Layout& layout, const DomainDocument& definition, const Inventory& inventory,
                                 const ExportChain& base, const std::string& snapshot, Preflight& preflight) {
  const auto here = std::ranges::find(inventory.snapshots, snapshot, &SnapshotDocument::name);
  if (here == inventory.snapshots.end()) {
    std::vector<std::string> names;
    for (const SnapshotDocument& one : inventory.snapshots) names.push_back(one.name());
    return make_error(ErrorKind::kNotFound,
                      fmt::format("domain '{}' has no snapshot '{}'", definition.name(), snapshot))
        .with_note(there_are(names));
  }
  if (!has_snapshot(base.manifest(), snapshot)) {
    preflight.refuse(make_error(ErrorKind::kRefused,
                                fmt::format("the export in {} has no snapshot '{}'", base.layout().root(), snapshot))
                         .with_note(there_are(snapshots_in(base.manifest()))));
    return {};
  }
  const std::string path = Layout::snapshot(definition.name(), snapshot);
  const SnapshotDocument then = TRY(SnapshotDocument::parse(TRY(base.document(path)), path));
  if (then.creation_time() != here->creation_time()) {
    preflight.refuse(
        make_error(ErrorKind::kRefused,
                   fmt::format("the snapshot '{}' in {} is another one, which had that name before", snapshot,
                               base.layout().root()))
            .with_note(fmt::format("here it is of {}, there of {}", format_local_time(here->creation_time()),
                                   format_local_time(then.creation_time()))));
    return {};
  }
  for (const SnapshotDiskUse& use : TRY(snapshot_disks(layout, *here, &definition))) {
    if (use.mode != SnapshotMode::kInternal || use.disk.format != "qcow2") continue;
    const auto host_path = layout.resolve(use.disk.source);
    if (!host_path) continue;  // the inventory's affair
    const auto file = std::ranges::find(inventory.files, *host_path, &MachineFile::host_path);
    if (file != inventory.files.end()) preflight.accept(check_same_point(*file, base, snapshot));
  }
  return {};
}

Result<std::string> base_directory_from(const std::string& directory, const std::string& base) {
  const std::string path = fs::path(base).lexically_relative(directory).string();
  if (path.starts_with("../") && is_plain_path(path.substr(2)) && !path.substr(2).starts_with("/..")) return path;
  return make_error(ErrorKind::kRefused,
                    fmt::format("{} does not lie beside {}, the export that it would stand on", directory, base))
      .with_note(fmt::format("the two refer to each other by their names, so they have to stay together: take a "
                             "directory in {}",
                             directory_of(base)));
}

}  // namespace varve
