// What the commands that work on a host share: opening it as the environment and -c say, telling what happens to the
// user, running a plan or printing it.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/command.h"
#include "host/choose_host.h"
#include "host/host.h"
#include "operation/operation.h"

namespace varve::cli {

// From -c and the environment.
Result<HostChoice> choose_host_for(const Context& context);

enum class IfMissing { kFail, kCreate };

// `command` is what other commands are told that wait for this one. kNotFound for a directory that does not
// exist, or a libvirtd that does not answer.
Result<std::unique_ptr<Host>> open_host(Context& context, const std::string& command,
                                        IfMissing if_missing = IfMissing::kFail);

// The host of this URI.
Result<std::unique_ptr<Host>> open_host_at(Context& context, const std::string& uri, const std::string& command,
                                           IfMissing if_missing = IfMissing::kFail);

// Runs the operation, or with --dry-run prints its plan. Prints `done` (and notes, to standard error) for people, and
// `result` with "notes" in it as JSON.
Result<ExitCode> run_or_print(Context& context, Operation& operation, const std::string& done, nlohmann::json result);

// Asks on a terminal, unless --yes. Where there is nobody to ask, the answer is yes: a script means what it says.
bool confirm(Context& context, const std::string& question);

void print_json(Context& context, const nlohmann::json& json);

// Unix time as virsh prints it, in local time: "2026-11-23 08:20:23 +0000".
std::string local_time(int64_t seconds);

}  // namespace varve::cli
