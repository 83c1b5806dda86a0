// Which disks a snapshot is made of, and where their images are: what its metadata recorded, in the light of where the
// images are today.
#pragma once

#include <string>
#include <vector>

#include "domain/domain_document.h"
#include "domain/snapshot_document.h"
#include "store/layout.h"

namespace varve {

struct SnapshotDiskUse {
  Disk disk;  // as it was defined then, but with the source of today where `moved` says so
  SnapshotMode mode = SnapshotMode::kNo;
  SnapshotDisk recorded;        // kExternal: the overlay
  std::string recorded_source;  // where the image was then
  bool moved = false;           // nothing is there any more, but the disk of that name has an image elsewhere today
};

// In the order of the definition of that time. `definition` is today's, or nullptr where the domain is not defined.
// A snapshot without a recorded definition (old libvirt) is read with today's; kNotFound where there is neither.
Result<std::vector<SnapshotDiskUse>> snapshot_disks(const Layout& layout, const SnapshotDocument& snapshot,
                                                    const DomainDocument* definition);

}  // namespace varve
