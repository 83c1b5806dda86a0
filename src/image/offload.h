// Copying between two files without the bytes passing through this process.
#pragma once

#include <cstdint>

#include "io/file_device.h"

namespace varve::image {

// Makes the first `size` bytes of `target` share their blocks with those of `source` (a reflink): near-free. False, and
// nothing changed, where the file system can't.
Result<bool> share_blocks(FileDevice& source, FileDevice& target, uint64_t size);

// Copies the first `size` bytes of data of `source` inside the kernel; holes stay as `target` has them. False where the
// file systems can't: some of it may be copied by then.
Result<bool> copy_in_kernel(FileDevice& source, FileDevice& target, uint64_t size);

// The same for a part of it, which is data.
Result<bool> copy_range_in_kernel(FileDevice& source, FileDevice& target, uint64_t offset, uint64_t length);

}  // namespace varve::image
