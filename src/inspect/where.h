// Where a snapshot is: every file, and every part of a file, that it is made of, what is missing of it, and what it
// would take to restore it elsewhere. Looks only; opens images for reading, under QEMU's locks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/snapshot_document.h"
#include "host/host.h"
#include "qcow2/image.h"

namespace varve {

struct FileLocation {
  std::string path;        // root path: what definitions say
  std::string shown_path;  // the way to it from here
  bool exists = false;
  std::optional<StorageVolume> volume = std::nullopt;  // of an image that a storage pool lists
};

// The entry of a snapshot in an image's own table, and what it holds.
struct PointLocation {
  std::string id;
  std::string tag;
  uint32_t date_sec = 0;
  uint64_t vm_state_bytes = 0;         // memory that is kept with it
  std::optional<uint64_t> disk_bytes;  // the virtual size at that time
  std::optional<qcow2::SnapshotUsage> usage;
};

struct DiskLocation {
  std::string target;
  SnapshotMode mode = SnapshotMode::kNo;
  std::string format;
  FileLocation image;
  std::string moved_from;                   // the path then, where it is another one today
  std::optional<PointLocation> point;       // nothing: the image has no such entry
  std::vector<FileLocation> backing_chain;  // nearest first
  std::string problem;                      // why the image could not be looked into, or why it is not enough
  bool is_hidden = false;                   // the problem is only that it can't be looked into now: in use, forbidden
  bool is_path() const { return image.path.starts_with('/'); }  // else nothing, or a disk on the network
};

struct SnapshotLocation {
  SnapshotSummary summary;
  FileLocation metadata;
  std::optional<FileLocation> definition;  // of today; nothing where the domain is not defined
  bool holds_definition = false;           // the metadata holds the one of that time
  std::vector<DiskLocation> disks;         // of that time, in its order; kNo: not part of the snapshot
  std::optional<FileLocation> memory;      // a file of its own
  std::optional<FileLocation> nvram;       // the firmware's variables: a file that is not part of the snapshot
  std::vector<std::string> missing;        // one line each
  std::vector<std::string> hidden;         // what could not be looked into now, one line each
  std::string to_restore;                  // in one sentence
  bool is_complete() const { return missing.empty() && hidden.empty(); }
};

struct DomainLocation {
  std::string name;
  FileLocation definition;
  std::vector<DiskLocation> disks;  // of today; without points
  std::optional<FileLocation> nvram;
  FileLocation snapshot_directory;
  struct Brief {
    SnapshotSummary summary;
    FileLocation metadata;
    std::vector<std::string> disks;    // the targets whose images hold it
    std::vector<std::string> missing;  // as above
    std::vector<std::string> hidden;
  };
  std::vector<Brief> snapshots;       // sorted by name
  std::vector<std::string> problems;  // of the metadata
  // Snapshots in the images that no metadata knows of: "disk vda: stray (id 3)".
  std::vector<std::string> unknown_points;
};

Result<SnapshotLocation> where_is_snapshot(Host& host, const std::string& domain, const std::string& snapshot);
Result<DomainLocation> where_is_domain(Host& host, const std::string& domain);

}  // namespace varve
