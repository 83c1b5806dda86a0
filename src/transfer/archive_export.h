// A machine exported into one file. The archive comes into being under a temporary name; it can't be gone on with after
// an interruption.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "host/host.h"
#include "operation/plan.h"
#include "transfer/archive.h"
#include "transfer/inventory.h"
#include "transfer/manifest.h"
#include "transfer/placement.h"

namespace varve {

class ArchiveExport {
 public:
  // `path` is a host path, at which there is nothing yet.
  static Result<ArchiveExport> plan(Host& source, const std::string& domain, const std::string& path);

  const Plan& plan() const { return plan_; }
  Result<Manifest> run(int64_t now_sec, const Watch& watch);

 private:
  ArchiveExport(LockedDomain domain, std::string path) : domain_(std::move(domain)), path_(std::move(path)) {}
  Result<Manifest> write(ArchiveWriter& archive, int64_t now_sec, const Watch& watch);

  LockedDomain domain_;
  std::string path_;
  Plan plan_;
  Inventory inventory_;
  Placement placement_;
};

}  // namespace varve
