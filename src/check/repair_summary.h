// What a planned repair is going to change, counted before anything is written.
#pragma once

#include "check/check.h"
#include "check/repair_plan.h"

namespace varve::check {

// Arguments as for carry_out().
Result<RepairSummary> summarize(const RepairPlan& plan, const ImageFile& file, const Layout& layout,
                                const StoredRefcounts& stored);

}  // namespace varve::check
