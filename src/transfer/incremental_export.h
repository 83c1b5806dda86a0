// A machine exported into a directory beside an earlier export of it: only what differs is written (manifest.h,
// delta.h). It is whole when its manifest is there, which comes last. Begun and not finished, it begins anew.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "host/host.h"
#include "operation/plan.h"
#include "transfer/export_chain.h"
#include "transfer/inventory.h"
#include "transfer/manifest.h"
#include "transfer/placement.h"

namespace varve {

struct IncrementRequest {
  std::string domain;
  std::string directory;  // a host path, absolute; it need not exist
  std::string snapshot;   // that both have
  std::string base;       // a host path; empty: find_base()
  bool verifies = false;  // what was written is read back from its disk
};

class IncrementalExport {
 public:
  static Result<IncrementalExport> plan(Host& source, IncrementRequest request);

  const Plan& plan() const { return plan_; }
  const std::string& base_directory() const { return base_.layout().root(); }
  Result<Manifest> run(int64_t now_sec, const Watch& watch);

 private:
  class Writing;
  IncrementalExport(Host& source, LockedDomain domain, ExportChain base, IncrementRequest request)
      : source_(&source), domain_(std::move(domain)), base_(std::move(base)), request_(std::move(request)) {}

  Host* source_;
  LockedDomain domain_;
  ExportChain base_;
  IncrementRequest request_;
  std::string directory_;       // real
  std::string base_directory_;  // as the manifest has it
  Plan plan_;
  Inventory inventory_;
  Placement placement_;
};

// kAlreadyExists where the directory has an incremental export of the domain.
Result<void> check_no_increment(const Layout& layout, const std::string& domain);

}  // namespace varve
