// What is in the way of an incremental export that nobody could import, or that its file system can't hold: all that
// can be told before anything is written.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "operation/preflight.h"
#include "transfer/export_chain.h"

namespace varve {

struct PlannedIncrement {
  std::string directory;                       // where it goes: a real host path that need not exist
  Manifest manifest;                           // as it is going to be, but for checksums; what the base has is a delta
  std::map<std::string, uint64_t> data_bytes;  // of files that it will have whole: without their holes
};

void check_increment(PlannedIncrement planned, const ExportChain& base, Preflight& preflight);

// That the directory is no host that knows the domain, or takes it in: the two would be taken for one another.
void check_is_no_host(const std::string& directory, const std::string& domain, Preflight& preflight);

// Of an export that is complete, from its disk: it is there with everything that it stands on, and its manifest is
// `made`.
Result<void> check_can_be_imported(const Layout& layout, const Manifest& made);

}  // namespace varve
