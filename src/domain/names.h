// Names of domains and snapshots. They are also file names, so what a file system, a terminal or a path could trip over
// is refused; everything else (spaces, umlauts, "a--b") is a name.
#pragma once

#include <string_view>

#include "base/result.h"

namespace varve {

// kInvalidArgument, with the reason in the message: empty, "/", control characters or NUL, invalid UTF-8, a leading
// dot, longer than 255 bytes with the ".xml" of its file.
Result<void> check_domain_name(std::string_view name);
Result<void> check_snapshot_name(std::string_view name);

}  // namespace varve
