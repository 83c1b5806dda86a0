// Whether a repair would write into metadata of another kind.
#pragma once

#include "check/references.h"

namespace varve::check {

// QEMU's name for what the range would overlap, or null. L2 tables may overlap L2 tables: they are what is repaired.
const char* overlapped_metadata(const Scan& scan, uint64_t offset, uint64_t bytes);

}  // namespace varve::check
