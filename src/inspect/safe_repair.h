// Whether an image can be mended without a guess about what it holds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "check/tally.h"

namespace varve {

// The repair is done in memory, on a device that only shows what would become of the file, and looked at: nothing where
// entries would be given up, where errors come with leaks (these may be what a broken reference refers to), where a
// snapshot's tables are not known, or where not all of it would be mended. The caller holds a lock on the image.
// Otherwise the bytes that the file takes for it beyond what it takes now.
Result<std::optional<uint64_t>> rehearse_safe_repair(const std::string& host_path, check::Repair repair);

}  // namespace varve
