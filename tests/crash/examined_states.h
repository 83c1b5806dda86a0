// How many states of disks and directories after a failure the crash tests have examined. Every test that has examined
// some prints their number as a line `states examined: N`, which scripts/test adds up.
#pragma once

#include "io/crash_states.h"

namespace varve::test {

void count_examined_states(size_t states = 1);

// for_each_crash_state(), counted. Under a sanitizer, where everything takes five to ten times as long, it takes fewer
// samples and enumerates fewer subsets: that every subset passes is for the undisturbed build to show.
size_t examine_crash_states(const FaultControl& control, CrashOptions options,
                            const std::function<bool(CrashState&)>& visit);

}  // namespace varve::test
