// Plans as `--dry-run` prints them, for every noun alike.
#pragma once

#include "cli/output.h"
#include "operation/plan.h"

namespace varve::cli {

// For people, or as JSON: dry_run, title, checks, steps, notes.
void print_plan(Output& output, bool json, const Plan& plan);

}  // namespace varve::cli
