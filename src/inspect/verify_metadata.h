// The snapshot metadata of one domain, by itself: what can't be understood, what does not fit together.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "domain/snapshot_document.h"
#include "domain/snapshot_tree.h"
#include "host/host.h"
#include "inspect/finding.h"

namespace varve {

struct ExaminedMetadata {
  size_t files = 0;
  // Names that a file claims, by its own name or by what it says, whether or not it can be understood.
  std::set<std::string> claimed;
};

// Reads every document once, gives each that is sound to `each`, and adds what it finds.
Result<ExaminedMetadata> examine_metadata(const Host& host, const std::string& domain,
                                          const std::function<void(const SnapshotDocument&)>& each,
                                          std::vector<Finding>& findings);

}  // namespace varve
