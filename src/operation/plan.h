// What an operation is going to do, as data, before it does it: what `--dry-run` prints.
#pragma once

#include <string>
#include <vector>

namespace varve {

struct Plan {
  std::string title;                // "create snapshot 'before-upgrade' of 'centos7'"
  std::vector<std::string> checks;  // what preflight has looked at, and found in order
  std::vector<std::string> steps;   // in order, one line each
  std::vector<std::string> notes;   // what the user may want to know before, or afterwards
};

}  // namespace varve
