#include "inspect/difference.h"

#include <fmt/format.h>

#include "disk/internal_disk.h"

namespace varve {

namespace {

// The one that the machine starts with next time, where it ran with another one.
Result<DomainDocument> definition_of(const SnapshotDocument& snapshot) {
  if (auto inactive = TRY(snapshot.inactive_domain())) return *std::move(inactive);
  return snapshot.domain();
}

// Why the disk as it was there can't be told from this image; nothing where it can.
std::optional<std::string> not_inside(const SnapshotDocument& snapshot, const std::string& target) {
  for (const SnapshotDisk& disk : snapshot.disks()) {
    if (disk.name != target) continue;
    if (disk.mode == SnapshotMode::kInternal) return std::nullopt;
    return fmt::format("snapshot '{}' keeps it as '{}'", snapshot.name(), name_of(disk.mode));
  }
  return fmt::format("snapshot '{}' does not have it", snapshot.name());
}

// Nothing: it is part of neither.
std::optional<DiskDifference> compare(const Layout& layout, const Disk& disk, const SnapshotDocument& one,
                                      const SnapshotDocument* other) {
  DiskDifference difference{.target = disk.target, .places = {}, .problem = {}};
  const auto why_one = not_inside(one, disk.target);
  const auto why_other = other == nullptr ? std::nullopt : not_inside(*other, disk.target);
  if (why_one && (other == nullptr || why_other)) return std::nullopt;
  if (why_one || why_other) {
    difference.problem = why_one ? *why_one : *why_other;
    return difference;
  }
  auto opened = InternalDisk::open(layout, disk, Access::kReadOnly);
  if (!opened) {
    difference.problem = opened.error().message;
    return difference;
  }
  size_t points[2] = {0, opened->points().size()};
  for (const auto& [at, snapshot] : {std::pair(0, &one), std::pair(1, other)}) {
    if (snapshot == nullptr) continue;
    const auto point = opened->find(snapshot->name());
    if (!point) {
      difference.problem =
          fmt::format("its image holds no snapshot '{}'; it holds {}", snapshot->name(), opened->list_of_points());
      return difference;
    }
    points[at] = *point;
  }
  auto places = opened->image().compare_points(points[0], points[1]);
  if (places) {
    difference.places = *std::move(places);
  } else {
    difference.problem = places.error().message;
  }
  return difference;
}

}  // namespace

Result<PointsDifference> difference_of_points(Host& host, const std::string& domain, const std::string& one,
                                              const std::string& other) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  const SnapshotDocument first = TRY(host.metadata().load(domain, one));
  std::optional<SnapshotDocument> second;
  if (!other.empty()) second = TRY(host.metadata().load(domain, other));

  PointsDifference difference;
  const auto then = definition_of(first);
  const auto now = second ? definition_of(*second) : Result<DomainDocument>(locked.definition);
  if (then && now) {
    difference.definition = unified_diff(then->to_xml(), now->to_xml());
  } else {
    difference.definition_problem = then ? now.error().message : then.error().message;
  }
  for (const Disk& disk : locked.definition.disks()) {
    if (auto compared = compare(host.layout(), disk, first, second ? &*second : nullptr)) {
      difference.disks.push_back(*std::move(compared));
    }
  }
  return difference;
}

}  // namespace varve
