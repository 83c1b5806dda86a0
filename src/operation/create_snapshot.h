// Takes a snapshot of a domain. Of one that is shut off: a point in the image of every selected disk, and the metadata
// with the definition as it is now, all of it in one commit. Of one that runs, or where external files are asked for:
// whoever runs the machine does it (machine_snapshot.h).
#pragma once

#include <cstdint>
#include <string>

#include "operation/disk_selection.h"
#include "operation/operation.h"

namespace varve {

enum class SnapshotMemoryWish : uint8_t {
  kDefault,   // with its memory, if it runs
  kWanted,    // the same, and refused where that can't be
  kDiskOnly,  // without
};

struct CreateSnapshotRequest {
  std::string domain;
  std::string name;  // empty: the time in seconds since the epoch, as libvirt does
  std::string description;
  DiskModes disks;
  SnapshotMode mode = SnapshotMode::kInternal;  // or kExternal: of disks that `disks` does not name, and of memory
  SnapshotMemoryWish memory = SnapshotMemoryWish::kDefault;
  std::string memory_file;   // kExternal: root path; empty: one in Layout::save_directory()
  bool live = false;         // the machine goes on meanwhile; kExternal with memory
  bool quiesce = false;      // its file systems are frozen meanwhile; kDiskOnly
  int quiesce_seconds = 30;  // and thawed after that, whatever happens
  uint64_t now_sec = 0;      // Unix time of the snapshot
  uint32_t now_nsec = 0;
};

Result<Operation> plan_create_snapshot(Host& host, const CreateSnapshotRequest& request);

}  // namespace varve
