// `varve snapshot diff --files`: the files that two points of a domain's disks do not have in common.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/command.h"
#include "host/host.h"

namespace varve::cli {

struct FilesDiffRequest {
  std::string domain;
  std::string one;
  std::string other;  // empty: the present state
  std::string disk;   // empty: all
};

// Starts libguestfs twice, and compares every file system by its device's name. Prints as it finds; with `result`,
// prints nothing and appends an object for each file system to it. False where one could not be read to its end: what
// was found so far is no whole answer.
Result<bool> diff_files(Context& context, Host& host, const FilesDiffRequest& request, nlohmann::json* result);

}  // namespace varve::cli
