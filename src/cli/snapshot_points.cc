#include "cli/snapshot_points.h"

#include <fmt/format.h>

namespace varve::cli {

Result<std::unique_ptr<image::Point>> open_point(const std::string& domain, const DiskPoint& disk) {
  auto opened = image::Point::open(disk.point, Access::kReadOnly);
  if (opened) return opened;
  Error error = std::move(opened).error().context(fmt::format("disk {}", disk.target));
  if (error.kind == ErrorKind::kNotFound) {
    error.notes.push_back(
        fmt::format("`varve verify {}` shows what is missing, `--disk TARGET` leaves other disks out", domain));
  }
  return error;
}

}  // namespace varve::cli
