// Mending what `verify` finds (inspect/verify.h): what can be mended without a guess about anybody's data. Nothing is
// deleted: metadata that has lost its meaning is kept aside, in var/lib/varve/aside/DOMAIN.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/snapshot_document.h"
#include "host/host.h"
#include "inspect/finding.h"
#include "operation/operation.h"

namespace varve {

struct RepairDomainRequest {
  std::string domain;
  uint64_t now_sec = 0;  // Unix time, for what is written into descriptions
};

struct RepairDomain {
  Operation operation;
  std::vector<Finding> mended;     // what the operation takes care of; nothing: there is nothing to run
  std::vector<Finding> remaining;  // what is left for a person
};

// Looks at the domain again, under its exclusive lock, and plans:
//   metadata that can't be understood           kept aside
//   metadata in a file of another name          the file gets the name
//   a missing parent, a circle of parents       the snapshot becomes a root
//   several snapshots marked as current         one stays so
//   metadata that no image has a point for      kept aside, the tree is closed
//   metadata that some images have no point for those disks are left out, the old file is kept aside
//   a point that no metadata has                adopted: metadata with today's definition
//   errors and leaks in images                  check -r all, check -r leaks, where nothing is given up
//   files half written                          removed
// kInUse where an image that has to be mended is in use.
Result<RepairDomain> plan_repair_domain(Host& host, const RepairDomainRequest& request);

// Metadata for a point in images that no metadata knows (FindingKind::kUnknownPoint), with this definition.
Result<SnapshotDocument> adopted_snapshot(const DomainDocument& definition, const Finding& finding, uint64_t now_sec);

// What verify_host() found: files half written and locks that nothing needs are removed. One line for each.
std::vector<std::string> describe_host_repair(const Host& host, const std::vector<Finding>& findings);
Result<void> repair_host(Host& host, const std::vector<Finding>& findings);

}  // namespace varve
