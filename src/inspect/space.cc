#include "inspect/space.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "disk/backing_files.h"
#include "disk/internal_disk.h"
#include "domain/names.h"

namespace varve {

namespace {

DiskFile file_at(const Layout& layout, const std::string& root_path) {
  DiskFile file{.path = root_path, .shown_path = layout.shown(root_path), .usage = {}, .problem = {}};
  // What it takes is asked of the file system; nothing is read.
  const auto look = [&]() -> Result<std::optional<FileUsage>> {
    const std::string path = TRY(layout.resolve(root_path));
    const auto device = TRY(FileDevice::open(path, Access::kReadOnly, LockRequest::none()));
    return file_usage(*device);
  };
  auto usage = look();
  if (usage) {
    file.usage = *usage;
  } else {
    file.problem = usage.error().kind == ErrorKind::kNotFound ? "MISSING" : usage.error().message;
  }
  return file;
}

// When and in which place of its image a point was taken.
struct Taken {
  uint64_t nanoseconds = 0;
  size_t point = 0;
  auto operator<=>(const Taken&) const = default;
};

class Looking {
 public:
  explicit Looking(const Layout& layout) : layout_(layout) {}

  Result<void> look_at(const Disk& disk);
  Result<void> add_metadata(const Host& host, const std::string& domain);
  DomainSpace take();

 private:
  SnapshotSpace& snapshot(const std::string& name) {
    SnapshotSpace& found = snapshots_[name];
    found.name = name;
    return found;
  }

  const Layout& layout_;
  DomainSpace domain_;
  SnapshotSpace present_;
  std::map<std::string, SnapshotSpace> snapshots_;
  std::map<std::string, Taken> taken_;
};

Result<void> Looking::look_at(const Disk& disk) {
  if (disk.device != DiskDevice::kDisk || disk.source.empty()) return {};
  DiskSpace space;
  space.target = disk.target;
  space.may_hold_points = disk.format == "qcow2";
  if (disk.is_local_file()) space.files.push_back(file_at(layout_, disk.source));
  if (disk.format != "qcow2") {
    space.problem = "its image is no qcow2 file and holds no snapshots";
    domain_.disks.push_back(std::move(space));
    return {};
  }
  auto opened = InternalDisk::open(layout_, disk, Access::kReadOnly);
  if (!opened) {
    space.problem = opened.error().message;
    domain_.disks.push_back(std::move(space));
    return {};
  }
  for (const BackingFile& file : backing_files(layout_, disk.source, opened->image().header()).files) {
    space.files.push_back(file_at(layout_, file.path));
  }
  auto points = opened->image().point_spaces();
  if (points) {
    space.space = *std::move(points);
  } else {
    space.problem = points.error().message;
  }
  const size_t index = domain_.disks.size();
  if (space.space) {
    for (size_t point = 0; point < opened->points().size(); ++point) {
      const qcow2::Snapshot& entry = opened->points()[point];
      space.points.push_back(entry.name);
      SnapshotSpace& found = snapshot(entry.name);
      // Of several with one name, the first is the one that is used.
      if (!found.disks.empty() && found.disks.back().disk == index) continue;
      found.disks.push_back({.disk = index, .point = point});
      found.memory_bytes = std::max(found.memory_bytes, entry.vm_state_size);
      taken_.try_emplace(
          entry.name, Taken{.nanoseconds = uint64_t{entry.date_sec} * 1'000'000'000 + entry.date_nsec, .point = point});
    }
    present_.disks.push_back({.disk = index, .point = opened->points().size()});
  }
  domain_.disks.push_back(std::move(space));
  return {};
}

Result<void> Looking::add_metadata(const Host& host, const std::string& domain) {
  for (const SnapshotSummary& summary : TRY(host.metadata().list(domain)).snapshots) {
    SnapshotSpace& found = snapshot(summary.name);
    found.summary = summary;
    found.is_external = summary.has_external_disk || summary.memory == SnapshotMode::kExternal;
    const DiskFile document = file_at(layout_, Layout::snapshot(domain, summary.name));
    if (document.usage) found.metadata_bytes = document.usage->size_bytes;
    if (summary.memory == SnapshotMode::kExternal) {
      const auto snapshot = host.metadata().load(domain, summary.name);
      const auto memory = snapshot ? file_at(layout_, snapshot->memory().file) : DiskFile{};
      if (memory.usage) found.memory_bytes = memory.usage->occupied_bytes;
    }
    taken_.try_emplace(
        summary.name,
        Taken{.nanoseconds = static_cast<uint64_t>(std::max<int64_t>(summary.creation_time, 0)) * 1'000'000'000,
              .point = SIZE_MAX});
  }
  return {};
}

DomainSpace Looking::take() {
  for (auto& [name, snapshot] : snapshots_) domain_.snapshots.push_back(std::move(snapshot));
  std::ranges::sort(domain_.snapshots, [&](const SnapshotSpace& a, const SnapshotSpace& b) {
    return std::tie(taken_.at(a.name), a.name) < std::tie(taken_.at(b.name), b.name);
  });
  domain_.snapshots.push_back(std::move(present_));
  return std::move(domain_);
}

}  // namespace

qcow2::PointSpace DomainSpace::total(const SnapshotSpace& snapshot) const {
  qcow2::PointSpace total;
  for (const auto& [disk, point] : snapshot.disks) {
    const qcow2::PointSpace& space = disks[disk].space->points()[point];
    total.referenced_bytes += space.referenced_bytes;
    total.exclusive_bytes += space.exclusive_bytes;
    total.table_bytes += space.table_bytes;
    total.shared_with_previous_bytes += space.shared_with_previous_bytes;
  }
  return total;
}

Result<uint64_t> DomainSpace::exclusive_bytes(const std::string& first, const std::string& last) const {
  const auto index_of = [&](const std::string& name) -> Result<size_t> {
    const auto found = std::ranges::find_if(
        snapshots, [&](const SnapshotSpace& snapshot) { return !snapshot.name.empty() && snapshot.name == name; });
    if (found != snapshots.end()) return static_cast<size_t>(found - snapshots.begin());
    std::vector<std::string> names;
    for (const SnapshotSpace& snapshot : snapshots) {
      if (!snapshot.name.empty()) names.push_back(snapshot.name);
    }
    return make_error(ErrorKind::kNotFound, fmt::format("there is no snapshot '{}'", name)).with_note(there_are(names));
  };
  const size_t from = TRY(index_of(first));
  const size_t to = TRY(index_of(last));
  if (from > to) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' was taken after '{}'", first, last))
        .with_note(fmt::format("say {}..{}", last, first));
  }
  for (const DiskSpace& disk : disks) {
    if (disk.space || !disk.may_hold_points) continue;
    return make_error(ErrorKind::kRefused,
                      fmt::format("what that gives back can't be told: disk {}: {}", disk.target, disk.problem));
  }
  // By disk: the first and the last of its points that are among them.
  std::map<size_t, std::pair<size_t, size_t>> points;
  for (size_t i = from; i <= to; ++i) {
    for (const auto& [disk, point] : snapshots[i].disks) {
      auto& [least, most] = points.try_emplace(disk, point, point).first->second;
      least = std::min(least, point);
      most = std::max(most, point);
    }
  }
  std::set<std::string> going;
  for (size_t i = from; i <= to; ++i) going.insert(snapshots[i].name);
  for (const auto& [disk, range] : points) {
    for (size_t point = range.first; point <= range.second; ++point) {
      const std::string& name = disks[disk].points[point];
      if (going.contains(name)) continue;
      return make_error(ErrorKind::kRefused,
                        fmt::format("'{}' and '{}' are no neighbours in disk {}: '{}' lies between", first, last,
                                    disks[disk].target, name));
    }
  }
  uint64_t bytes = 0;
  for (const auto& [disk, range] : points) bytes += disks[disk].space->exclusive_bytes(range.first, range.second);
  return bytes;
}

Result<DomainSpace> space_of_domain(Host& host, const std::string& domain) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  Looking looking(host.layout());
  for (const Disk& disk : locked.definition.disks()) TRY(looking.look_at(disk));
  TRY(looking.add_metadata(host, domain));
  return looking.take();
}

}  // namespace varve
