// `image convert --bitmaps`: the persistent dirty bitmaps of the source go into the copy.
#pragma once

#include "cli/output.h"
#include "image/open.h"

namespace varve::cli {

// The bitmaps to copy, in the order in which QEMU goes through them. kRefused where the image can have none, or one is
// inconsistent and such are not to be skipped.
Result<std::vector<qcow2::DirtyBitmap>> bitmaps_to_copy(const image::OpenImage& source, bool skip_broken);

// Stores them beside those that `target` has; names the inconsistent ones, which stay behind.
Result<void> copy_bitmaps(Output& output, std::span<const qcow2::DirtyBitmap> bitmaps, uint64_t source_size,
                          const image::OpenImage& target);

}  // namespace varve::cli
