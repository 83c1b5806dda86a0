// The disks of a snapshot, or of today, as points of images that can be opened (image/point.h): for who serves,
// extracts or mounts what the machine had then. Looks only.
#pragma once

#include <string>
#include <vector>

#include "host/host.h"
#include "image/point.h"

namespace varve {

struct DiskPoint {
  std::string target;      // "vda"
  image::PointName point;  // a host path; an internal point by its name, an external one as the frozen image
};

// In the order of the definition of that time. `targets` empty: all that are part of the snapshot. kNotFound: no such
// disk, or no image; kRefused: a disk that is not part of it, or whose format is not recorded; kUnsupported: kept in a
// way that nothing here opens. Below another ROOT than "/", kRefused also for a backing file whose name would lead
// elsewhere when it is opened from here.
Result<std::vector<DiskPoint>> points_of_snapshot(Host& host, const std::string& domain, const std::string& snapshot,
                                                  const std::vector<std::string>& targets);

// The disks of today, likewise.
Result<std::vector<DiskPoint>> points_of_today(Host& host, const std::string& domain,
                                               const std::vector<std::string>& targets);

}  // namespace varve
