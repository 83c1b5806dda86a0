// The verbs of `varve snapshot` that look inside the disks of a snapshot: serve, extract, ls, cat, cp, mount.
#pragma once

#include <memory>
#include <string>

#include "cli/command.h"
#include "inspect/snapshot_points.h"

namespace varve::cli {

void add_snapshot_serve(CLI::App& snapshot, Context& context);
void add_snapshot_extract(CLI::App& snapshot, Context& context);
void add_snapshot_files(CLI::App& snapshot, Context& context);  // ls, cat, cp
void add_snapshot_mount(CLI::App& snapshot, Context& context);

// Opens it for reading; errors name the disk and what to do.
Result<std::unique_ptr<image::Point>> open_point(const std::string& domain, const DiskPoint& disk);

}  // namespace varve::cli
