// What is left of commands that were interrupted, and of domains that are gone.
#pragma once

#include <string>
#include <vector>

#include "host/host.h"
#include "inspect/finding.h"

namespace varve {

// Files half written among the domain's metadata. Whoever writes there has the domain's lock exclusively; the caller
// has it too, shared or not, so nobody is at work on them.
Result<void> find_leftovers_of_domain(const Host& host, const std::string& domain, std::vector<Finding>& findings);

// Definitions that can't be understood, snapshots without a domain, records of the journal, files half written in
// directories that domains share, locks of domains that are gone.
Result<void> find_leftovers_of_host(const Host& host, std::vector<Finding>& findings);

}  // namespace varve
