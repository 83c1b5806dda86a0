// What the snapshots of a domain cost: what each of them references, what it alone holds, what it shares with the one
// before, and what a whole row of them would give back. Looks only; opens images for reading, under QEMU's locks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/snapshot_document.h"
#include "host/host.h"
#include "io/file_usage.h"
#include "qcow2/image.h"

namespace varve {

// A file that a disk is made of: its image, or one below that.
struct DiskFile {
  std::string path;                // root path
  std::string shown_path;          // the way to it from here
  std::optional<FileUsage> usage;  // nothing: see `problem`, or it is no file but a device
  std::string problem;             // why it could not be looked at; empty: nothing is wrong
};

struct DiskSpace {
  std::string target;
  std::vector<DiskFile> files;              // the image first, then what it is upon
  std::optional<qcow2::PointSpaces> space;  // nothing: see `problem`; its last point is the present state
  std::vector<std::string> points;          // their names, in the same order, without the present state
  std::string problem;                      // why it could not be looked into
  bool may_hold_points = false;             // else there is nothing to be told, and a problem hides nothing
};

// Of one snapshot, or of the present state: every disk of today that holds it.
struct SnapshotSpace {
  std::string name;                        // empty: the present state
  std::optional<SnapshotSummary> summary;  // nothing: no metadata knows it
  struct OnDisk {
    size_t disk = 0;   // index of DomainSpace::disks
    size_t point = 0;  // index of its points
  };
  std::vector<OnDisk> disks;
  uint64_t memory_bytes = 0;    // the saved memory, in an image or in a file of its own
  uint64_t metadata_bytes = 0;  // its document
  bool is_external = false;     // its disks are frozen below overlays: they are among the files of a disk
};

struct DomainSpace {
  std::vector<DiskSpace> disks;
  std::vector<SnapshotSpace> snapshots;  // as they were taken; the present state last
  qcow2::PointSpace total(const SnapshotSpace& snapshot) const;
  // What deleting both and all between them would give back, in the order in which they were taken. kNotFound. kRefused
  // where they are no neighbours in an image, or an image could not be looked into.
  Result<uint64_t> exclusive_bytes(const std::string& first, const std::string& last) const;
};

Result<DomainSpace> space_of_domain(Host& host, const std::string& domain);

}  // namespace varve
