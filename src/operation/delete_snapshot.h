// Deletes snapshots: the points in the images, whose space goes back to the file system, and the metadata. Children of
// what is deleted get the nearest ancestor that stays, and so does "current".
#pragma once

#include <string>

#include "operation/operation.h"

namespace varve {

struct DeleteSnapshotRequest {
  std::string domain;
  std::string name;
  bool children = false;       // with all its descendants
  bool metadata_only = false;  // the points stay in the images
};

Result<Operation> plan_delete_snapshot(Host& host, const DeleteSnapshotRequest& request);

}  // namespace varve
