#include "inspect/snapshot_points.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "disk/backing_files.h"
#include "disk/snapshot_disks.h"
#include "image/backing_name.h"
#include "io/file_device.h"

namespace varve {

namespace {

bool is_part(const SnapshotDiskUse& use) {
  return use.mode != SnapshotMode::kNo;
}

std::string targets_of(const std::vector<SnapshotDiskUse>& uses, bool parts_only) {
  std::string text;
  for (const SnapshotDiskUse& use : uses) {
    if (!parts_only || is_part(use)) text += (text.empty() ? "" : ", ") + use.disk.target;
  }
  return text.empty() ? "none" : text;
}

// Names of backing files mean files below ROOT; who opens the image from here would follow them from "/".
Result<void> check_chain(const Layout& layout, const Disk& disk, const std::string& host_path) {
  if (layout.root() == "/") return {};
  const auto file = TRY(FileDevice::open(host_path, Access::kReadOnly, LockRequest::none()));
  const auto chain = backing_files(layout, disk.source, TRY(qcow2::read_header(*file)), LockRequest::none());
  std::string above = host_path;
  for (const BackingFile& below : chain.files) {
    const auto meant = layout.resolve(below.path);
    if (!meant) break;  // who opens it is told
    std::error_code error;
    const auto opened = std::filesystem::canonical(image::resolve_backing_name(above, below.recorded), error);
    if (error || opened != std::filesystem::path(*meant)) {
      return make_error(ErrorKind::kRefused,
                        fmt::format("disk {}: '{}' names its backing file '{}', which from here is not {}", disk.target,
                                    above, below.recorded, layout.shown(below.path)))
          .with_note(fmt::format("a name relative to the image means the same everywhere: `qemu-img rebase -u -F {} -b "
                                 "FILE '{}'` records one; or `chroot {}` first",
                                 below.format.empty() ? "FORMAT" : below.format, above, layout.root()));
    }
    above = *meant;
  }
  return {};
}

Result<DiskPoint> locate(const Layout& layout, const SnapshotDiskUse& use, const std::string& snapshot) {
  const Disk& disk = use.disk;
  if (use.mode != SnapshotMode::kInternal && use.mode != SnapshotMode::kExternal) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("disk {} is kept as '{}', which Varve can't open", disk.target, name_of(use.mode)));
  }
  if (!disk.is_local_file() || disk.source.empty()) {
    return make_error(ErrorKind::kUnsupported, fmt::format("disk {} is of type '{}', and only images in files and on "
                                                           "block devices are opened",
                                                           disk.target, name_of(disk.source_type)))
        .with_note("`--disk TARGET` says which of the others is meant");
  }
  if (disk.format.empty()) {
    return make_error(ErrorKind::kRefused,
                      fmt::format("the definition does not say which format disk {} ({}) has, and guessing is unsafe",
                                  disk.target, disk.source))
        .with_note("`varve vm edit` puts <driver name='qemu' type='qcow2'/> (or the format it has) into the <disk>");
  }
  const auto format = image::format_of_name(disk.format);
  if (!format || *format == image::Format::kLuks) {
    return make_error(ErrorKind::kUnsupported, fmt::format("disk {} ({}) is a {} image, and only qcow2 and raw images "
                                                           "are opened",
                                                           disk.target, disk.source, disk.format));
  }
  auto path = layout.resolve(disk.source);
  if (!path) return std::move(path).error().context(fmt::format("disk {} ({})", disk.target, disk.source));
  if (*format == image::Format::kQcow2) TRY(check_chain(layout, disk, *path));
  DiskPoint result{.target = disk.target, .point = {.path = *std::move(path), .format = *format}};
  if (use.mode == SnapshotMode::kInternal) result.point.snapshot = snapshot;
  return result;
}

}  // namespace

Result<std::vector<DiskPoint>> points_of_snapshot(Host& host, const std::string& domain, const std::string& snapshot,
                                                  const std::vector<std::string>& targets) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  const SnapshotDocument document = TRY(host.metadata().load(domain, snapshot));
  const auto uses = TRY(snapshot_disks(host.layout(), document, &locked.definition));
  for (const std::string& target : targets) {
    const auto use = std::ranges::find_if(uses, [&](const SnapshotDiskUse& u) { return u.disk.target == target; });
    if (use == uses.end()) {
      return make_error(ErrorKind::kNotFound,
                        fmt::format("'{}' had no disk {} at snapshot '{}'", domain, target, snapshot))
          .with_note(fmt::format("it had {}", targets_of(uses, false)));
    }
    if (!is_part(*use)) {
      return make_error(ErrorKind::kRefused,
                        fmt::format("disk {} is not part of snapshot '{}' of '{}'", target, snapshot, domain))
          .with_note(fmt::format("it has {}", targets_of(uses, true)));
    }
  }
  std::vector<DiskPoint> points;
  for (const SnapshotDiskUse& use : uses) {
    const bool wanted = targets.empty() ? is_part(use) : std::ranges::count(targets, use.disk.target) != 0;
    if (wanted) points.push_back(TRY(locate(host.layout(), use, snapshot)));
  }
  if (!points.empty()) return points;
  return make_error(ErrorKind::kRefused, fmt::format("snapshot '{}' of '{}' has no disk", snapshot, domain))
      .with_note("it holds the definition only, or memory");
}

Result<std::vector<DiskPoint>> points_of_today(Host& host, const std::string& domain,
                                               const std::vector<std::string>& targets) {
  TRY(host.check_images_are_here());
  const LockedDomain locked = TRY(host.open_domain(domain, DomainLock::Mode::kShared));
  for (const std::string& target : targets) {
    if (locked.definition.disk(target) != nullptr) continue;
    return make_error(ErrorKind::kNotFound, fmt::format("'{}' has no disk {}", domain, target));
  }
  std::vector<DiskPoint> points;
  for (const Disk& disk : locked.definition.disks()) {
    if (!targets.empty() && std::ranges::count(targets, disk.target) == 0) continue;
    SnapshotDiskUse use;
    use.disk = disk;
    use.mode = SnapshotMode::kExternal;  // the image on top, whichever snapshots are inside of it
    points.push_back(TRY(locate(host.layout(), use, {})));
  }
  if (!points.empty()) return points;
  return make_error(ErrorKind::kRefused, fmt::format("'{}' has no disk", domain));
}

}  // namespace varve
