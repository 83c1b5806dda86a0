// Renames a snapshot, in its metadata and in every image at once, and changes its description.
#pragma once

#include <optional>
#include <string>

#include "operation/operation.h"

namespace varve {

struct EditSnapshotRequest {
  std::string domain;
  std::string name;
  std::optional<std::string> new_name;
  std::optional<std::string> description;  // empty: removes it
};

Result<Operation> plan_edit_snapshot(Host& host, const EditSnapshotRequest& request);

}  // namespace varve
