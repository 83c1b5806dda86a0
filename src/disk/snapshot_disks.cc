#include "disk/snapshot_disks.h"

#include <fmt/format.h>

#include <algorithm>

namespace varve {

Result<std::vector<SnapshotDiskUse>> snapshot_disks(const Layout& layout, const SnapshotDocument& snapshot,
                                                    const DomainDocument* definition) {
  Result<DomainDocument> then = snapshot.domain();
  if (!then && (then.error().kind != ErrorKind::kNotFound || definition == nullptr)) return std::move(then).error();
  const DomainDocument& domain = then ? *then : *definition;

  const std::vector<SnapshotDisk> recorded = snapshot.disks();
  std::vector<SnapshotDiskUse> uses;
  for (const Disk& disk : domain.disks()) {
    SnapshotDiskUse use{
        .disk = disk, .mode = SnapshotMode::kNo, .recorded = {}, .recorded_source = disk.source, .moved = false};
    const auto entry = std::ranges::find(recorded, disk.target, &SnapshotDisk::name);
    if (entry != recorded.end()) {
      use.mode = entry->mode == SnapshotMode::kDefault ? SnapshotMode::kInternal : entry->mode;
      use.recorded = *entry;
    } else if (recorded.empty() && disk.in_snapshots_by_default()) {
      use.mode = SnapshotMode::kInternal;
    }
    const Disk* today = definition == nullptr ? nullptr : definition->disk(disk.target);
    if (disk.is_local_file() && !disk.source.empty() && today != nullptr && today->is_local_file() &&
        today->source != disk.source && !layout.resolve(disk.source) && layout.resolve(today->source)) {
      use.disk.source = today->source;
      use.moved = true;
    }
    uses.push_back(std::move(use));
  }
  return uses;
}

}  // namespace varve
