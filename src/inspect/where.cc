#include "inspect/where.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "disk/backing_files.h"
#include "disk/internal_disk.h"
#include "disk/snapshot_disks.h"

namespace varve {

namespace {

FileLocation locate(const Layout& layout, const std::string& root_path) {
  const auto resolved = layout.resolve(root_path);
  return {.path = root_path, .shown_path = layout.shown(root_path), .exists = resolved.has_value()};
}

std::string explain(const Error& error) {
  std::string text = error.message;
  for (const std::string& note : error.notes) text += "; " + note;
  return text;
}

// Of a disk's image. Who reads it knows which disk is meant.
std::string explain(const Error& error, const Disk& disk) {
  std::string text = explain(error);
  const std::string prefix = fmt::format("disk {} ({}): ", disk.target, disk.source);
  if (text.starts_with(prefix)) text.erase(0, prefix.size());
  return text;
}

// Whether looking again, later or as somebody else, could tell more.
bool is_hidden(const Error& error) {
  return error.kind == ErrorKind::kInUse || error.kind == ErrorKind::kPermission;
}

FileLocation locate_image(const Host& host, const std::string& root_path) {
  FileLocation location = locate(host.layout(), root_path);
  location.volume = host.volume_of(root_path);
  return location;
}

// "pool/volume", as a disk's source says it.
FileLocation locate_volume(const Host& host, const std::string& source) {
  const size_t slash = source.find('/');
  if (slash != std::string::npos) {
    const StorageVolume volume{.pool = source.substr(0, slash), .name = source.substr(slash + 1)};
    if (const auto path = host.path_of(volume)) {
      FileLocation location = locate(host.layout(), *path);
      location.volume = volume;
      return location;
    }
  }
  return {.path = source, .shown_path = source, .exists = false};
}

DiskLocation locate_disk(const Host& host, const Disk& disk, SnapshotMode mode) {
  DiskLocation location;
  location.target = disk.target;
  location.mode = mode;
  location.format = disk.format;
  if (disk.is_local_file() && !disk.source.empty()) {
    location.image = locate_image(host, disk.source);
  } else if (disk.source_type == DiskSourceType::kVolume) {
    location.image = locate_volume(host, disk.source);
  } else {
    location.image = {.path = disk.source, .shown_path = disk.source, .exists = false};
  }
  return location;
}

// Below the image at a root path, nearest first.
std::vector<FileLocation> locate_chain(const Host& host, const BackingFiles& chain) {
  std::vector<FileLocation> files;
  for (const BackingFile& file : chain.files) {
    files.push_back(locate_image(host, file.path));
    files.back().exists = file.exists;
  }
  return files;
}

// Opens the image and finds the entry, with what it references if that is wanted.
void look_inside(const Host& host, const Disk& disk, const std::string& snapshot, DiskLocation& location) {
  const Layout& layout = host.layout();
  auto opened = InternalDisk::open(layout, disk, Access::kReadOnly);
  if (!opened) {
    location.problem = explain(opened.error(), disk);
    location.is_hidden = is_hidden(opened.error());
    return;
  }
  const auto chain = backing_files(layout, disk.source, opened->image().header());
  location.backing_chain = locate_chain(host, chain);
  location.problem = chain.problem;
  const auto index = opened->find(snapshot);
  if (!index) {
    location.problem = fmt::format("its image holds no snapshot of that name; it holds {}", opened->list_of_points());
    return;
  }
  const qcow2::Snapshot& entry = opened->points()[*index];
  PointLocation point{.id = entry.id,
                      .tag = entry.name,
                      .date_sec = entry.date_sec,
                      .vm_state_bytes = entry.vm_state_size,
                      .disk_bytes = entry.disk_size,
                      .usage = {}};
  auto usage = opened->image().snapshot_usage(*index);
  if (usage) {
    point.usage = *usage;
  } else {
    location.problem = explain(usage.error());
  }
  if (entry.fault) location.problem = "its snapshot is damaged: " + entry.fault->what;
  location.point = std::move(point);
}

void note_missing(const DiskLocation& disk, std::vector<std::string>& missing, std::vector<std::string>& hidden) {
  if (!disk.image.exists && (disk.mode == SnapshotMode::kInternal || disk.mode == SnapshotMode::kExternal)) {
    missing.push_back(fmt::format("disk {}: its image {} is not there", disk.target, disk.image.shown_path));
    return;
  }
  if (disk.is_hidden) {
    hidden.push_back(fmt::format("disk {}: {}", disk.target, disk.problem));
  } else if (disk.mode == SnapshotMode::kInternal && (!disk.point || !disk.problem.empty())) {
    missing.push_back(fmt::format("disk {}: {}", disk.target, disk.problem));
  }
  for (const FileLocation& file : disk.backing_chain) {
    if (file.exists) continue;
    missing.push_back(fmt::format("disk {}: the backing file {} is not there", disk.target, file.shown_path));
  }
}

// What somebody who has to carry the snapshot to another machine needs to know.
std::string restoring(const SnapshotLocation& location) {
  std::vector<std::string> files;
  std::set<std::string> seen;
  const auto add = [&](const FileLocation& file) {
    if (seen.insert(file.path).second) files.push_back(file.shown_path);
  };
  bool any_inside = false;
  for (const DiskLocation& disk : location.disks) {
    if (disk.mode != SnapshotMode::kInternal && disk.mode != SnapshotMode::kExternal) continue;
    any_inside = any_inside || disk.mode == SnapshotMode::kInternal;
    if (disk.image.path.empty()) continue;
    add(disk.image);
    for (const FileLocation& file : disk.backing_chain) add(file);
  }
  if (location.memory) add(*location.memory);
  if (!location.missing.empty()) {
    return fmt::format("It can't be restored as it is: {}.", fmt::join(location.missing, "; "));
  }
  if (!location.hidden.empty()) {
    return fmt::format("Whether it can be restored can't be told now: {}.", fmt::join(location.hidden, "; "));
  }
  std::string text =
      fmt::format("To restore it elsewhere, take {} and {}", fmt::join(files, ", "), location.metadata.shown_path);
  if (!location.holds_definition && location.definition) text += " and " + location.definition->shown_path;
  text += ", all of the files whole";
  if (any_inside) text += ": the snapshot is inside the image, and a copy of the image has it too";
  if (location.nvram) {
    text += fmt::format("; the firmware's variables in {} are not part of the snapshot", location.nvram->shown_path);
  }
  return text + ".";
}

std::optional<FileLocation> nvram_of(const Layout& layout, const DomainDocument& definition) {
  const auto path = definition.nvram_path();
  if (!path) return std::nullopt;
  return locate(layout, *path);
}

}  // namespace

Result<SnapshotLocation> where_is_snapshot(Host& host, const std::string& domain, const std::string& snapshot) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  const SnapshotDocument document = TRY(host.metadata().load(domain, snapshot));
  const Layout& layout = host.layout();

  SnapshotLocation location;
  location.summary = document.summary();
  location.metadata = locate(layout, Layout::snapshot(domain, snapshot));
  location.definition = locate(layout, Layout::definition(domain));
  const auto then = document.domain();
  location.holds_definition = then.has_value();
  location.nvram = nvram_of(layout, then ? *then : locked.definition);
  for (const SnapshotDiskUse& use : TRY(snapshot_disks(layout, document, &locked.definition))) {
    DiskLocation disk = locate_disk(host, use.disk, use.mode);
    if (use.moved) disk.moved_from = use.recorded_source;
    if (use.mode == SnapshotMode::kInternal) {
      look_inside(host, use.disk, snapshot, disk);
    } else if (use.mode == SnapshotMode::kExternal) {
      // The point is what the image was before the overlay was put upon it.
      Disk read_only = use.disk;
      if (read_only.format == "qcow2") {
        auto opened = InternalDisk::open(layout, read_only, Access::kReadOnly);
        if (opened) {
          disk.backing_chain = locate_chain(host, backing_files(layout, use.disk.source, opened->image().header()));
        } else if (disk.image.exists) {
          disk.problem = explain(opened.error(), use.disk);
          disk.is_hidden = is_hidden(opened.error());
        }
      }
    }
    note_missing(disk, location.missing, location.hidden);
    location.disks.push_back(std::move(disk));
  }
  if (document.memory().mode == SnapshotMode::kExternal) {
    location.memory = locate(layout, document.memory().file);
    if (!location.memory->exists) {
      location.missing.push_back(fmt::format("the memory image {} is not there", location.memory->shown_path));
    }
  }
  location.to_restore = restoring(location);
  return location;
}

namespace {

// The tables of the domain's images, each read once.
class Tables {
 public:
  explicit Tables(const Layout& layout) : layout_(layout) {}

  struct Table {
    std::string target;
    std::set<std::string> names;
    std::map<std::string, std::string> damaged;  // of these, and why
    std::string problem;
    bool is_hidden = false;
    std::vector<std::string> described;  // "stray (id 3)", beside names_in_order
    std::vector<std::string> names_in_order;
  };
  const Table& of(const Disk& disk) {
    const auto [found, is_new] = tables_.try_emplace(disk.source);
    Table& table = found->second;
    if (!is_new) return table;
    table.target = disk.target;
    const auto opened = InternalDisk::open(layout_, disk, Access::kReadOnly);
    if (!opened) {
      table.problem = explain(opened.error(), disk);
      table.is_hidden = is_hidden(opened.error());
      return table;
    }
    for (const qcow2::Snapshot& point : opened->points()) {
      // Of several with one name, the first is the one that is used.
      if (table.names.insert(point.name).second && point.fault) table.damaged.emplace(point.name, point.fault->what);
      table.names_in_order.push_back(point.name);
      table.described.push_back(fmt::format("{} (id {})", point.name, point.id));
    }
    return table;
  }
  const std::map<std::string, Table>& all() const { return tables_; }

 private:
  const Layout& layout_;
  std::map<std::string, Table> tables_;
};

Result<DomainLocation::Brief> locate_briefly(Host& host, const std::string& domain, const SnapshotSummary& summary,
                                             const DomainDocument& definition, Tables& tables) {
  DomainLocation::Brief brief;
  brief.summary = summary;
  brief.metadata = locate(host.layout(), Layout::snapshot(domain, summary.name));
  const SnapshotDocument document = TRY(host.metadata().load(domain, summary.name));
  for (const SnapshotDiskUse& use : TRY(snapshot_disks(host.layout(), document, &definition))) {
    if (use.mode != SnapshotMode::kInternal) {
      if (use.mode != SnapshotMode::kNo) brief.disks.push_back(use.disk.target);
      continue;
    }
    const Tables::Table& table = tables.of(use.disk);
    if (const auto damaged = table.damaged.find(summary.name); damaged != table.damaged.end()) {
      brief.missing.push_back(fmt::format("disk {}: its snapshot is damaged: {}", use.disk.target, damaged->second));
    } else if (table.names.contains(summary.name)) {
      brief.disks.push_back(use.disk.target);
    } else if (!table.problem.empty()) {
      (table.is_hidden ? brief.hidden : brief.missing)
          .push_back(fmt::format("disk {}: {}", use.disk.target, table.problem));
    } else {
      brief.missing.push_back(fmt::format("disk {}: {} holds no snapshot of that name", use.disk.target,
                                          host.layout().shown(use.disk.source)));
    }
  }
  return brief;
}

}  // namespace

Result<DomainLocation> where_is_domain(Host& host, const std::string& domain) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  const Layout& layout = host.layout();
  DomainLocation location;
  location.name = domain;
  location.definition = locate(layout, Layout::definition(domain));
  location.snapshot_directory = locate(layout, Layout::snapshots_directory(domain));
  location.nvram = nvram_of(layout, locked.definition);

  Tables tables(layout);
  for (const Disk& disk : locked.definition.disks()) {
    DiskLocation entry = locate_disk(host, disk, SnapshotMode::kDefault);
    if (disk.format == "qcow2" && entry.image.exists) {
      if (const auto opened = InternalDisk::open(layout, disk, Access::kReadOnly); opened) {
        const auto chain = backing_files(layout, disk.source, opened->image().header());
        entry.backing_chain = locate_chain(host, chain);
        entry.problem = chain.problem;
      } else {
        entry.problem = explain(opened.error(), disk);
        entry.is_hidden = is_hidden(opened.error());
      }
      tables.of(disk);
    }
    location.disks.push_back(std::move(entry));
  }

  MetadataStore::Listing listing = TRY(host.metadata().list(domain));
  for (const Error& problem : listing.problems) location.problems.push_back(problem.message);
  std::set<std::string> known;
  for (const SnapshotSummary& summary : listing.snapshots) {
    known.insert(summary.name);
    location.snapshots.push_back(TRY(locate_briefly(host, domain, summary, locked.definition, tables)));
  }
  for (const auto& [path, table] : tables.all()) {
    for (size_t i = 0; i < table.names_in_order.size(); ++i) {
      if (known.contains(table.names_in_order[i])) continue;
      location.unknown_points.push_back(fmt::format("disk {}: {}", table.target, table.described[i]));
    }
  }
  return location;
}

}  // namespace varve
