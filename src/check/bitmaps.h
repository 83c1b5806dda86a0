// Persistent bitmaps: their directory, their tables, the clusters of those.
#pragma once

#include "check/references.h"

namespace varve::check {

// What QEMU does when it opens an image: the directory has to make sense, and so do the tables of bitmaps that are not
// in use. Errors are in QEMU's words.
Result<void> validate_bitmaps(const ImageFile& file, const Layout& layout);
// Counts their references. False: the check ends here (tally.error).
bool count_bitmaps(Scan& scan);

}  // namespace varve::check
