// The options of QEMU's driver blkdebug: which requests shall fail (io/debug_device.h). They come from the user's
// command line and from a file that it names; with QEMU's names, meaning, and words for what is wrong with them.
#pragma once

#include "base/result.h"
#include "cli/source_option.h"
#include "io/debug_device.h"

namespace varve::cli {

// All but those of the image below ("image.…").
Result<DebugOptions> parse_debug_options(const SourceOptions& options);

}  // namespace varve::cli
