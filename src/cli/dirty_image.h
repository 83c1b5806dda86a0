// An image that was not closed cleanly while its refcounts were lazy: they are on disk as they were, and are counted
// anew before anybody writes, as QEMU does when it opens such an image.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"

namespace varve::cli {

// Whether the qcow2 file at `path` is marked dirty, and not corrupt. False where that can't be found out.
bool is_dirty_image(const std::string& path);

// `line` gets what is found and done, line by line. Nobody else may be using the image.
Result<void> repair_dirty_image(const std::string& path, const std::function<void(const std::string&)>& line);

}  // namespace varve::cli
