// What qemu-img's check doesn't look for: whether compressed clusters decode, whether an L2 table serves two places of
// one disk, whether tables lie on top of each other.
#pragma once

#include "check/layout.h"
#include "check/tally.h"

namespace varve::check {

// Of an image that a check could read to its end. Findings are lines that begin with ERROR, and corruptions.
Result<void> check_deep(BlockDevice& device, const Report& report, Tally& tally);

}  // namespace varve::check
