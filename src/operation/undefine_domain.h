// Forgets a domain: its definition, and where the user says so its snapshots and its disks.
#pragma once

#include <string>
#include <vector>

#include "operation/operation.h"

namespace varve {

struct UndefineDomainRequest {
  std::string domain;
  bool snapshots = false;               // and their metadata, and the points in images that stay
  bool storage = false;                 // and the images of its writable disks that nobody else uses, and its NVRAM
  std::vector<std::string> files = {};  // with `storage`: more that goes unless somebody else needs it; root paths
};

Result<Operation> plan_undefine_domain(Host& host, const UndefineDomainRequest& request);

}  // namespace varve
