// Takes a snapshot of a domain that is shut off: a point in the image of every selected disk, and the metadata with the
// definition as it is now. All of it in one commit.
#pragma once

#include <cstdint>
#include <string>

#include "operation/disk_selection.h"
#include "operation/operation.h"

namespace varve {

struct CreateSnapshotRequest {
  std::string domain;
  std::string name;  // empty: the time in seconds since the epoch, as libvirt does
  std::string description;
  DiskModes disks;
  uint64_t now_sec = 0;  // Unix time of the snapshot
  uint32_t now_nsec = 0;
};

Result<Operation> plan_create_snapshot(Host& host, const CreateSnapshotRequest& request);

}  // namespace varve
