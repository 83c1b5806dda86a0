// A file copied as it is: its holes stay holes, and where the file system can let both files have the same blocks
// (reflink), it does. A copy that was interrupted is gone on with: what is there already is compared, not written
// again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"
#include "io/file_device.h"

namespace varve {

// Looks on; all may be empty, the first two together. Every byte of the file comes in order, as itself or as one of so
// many zeroes, from another thread than progress().
struct CopyObserver {
  std::function<void(std::span<const std::byte>)> bytes;
  std::function<void(uint64_t length)> zeroes;          // a hole
  std::function<Result<void>(uint64_t done)> progress;  // of its size; an error stops the copy
};

enum class CopyMethod : uint8_t {
  kBytes,
  kSharedBlocks,  // nothing was read, the observer has seen no bytes
};

// Makes `target`, which is open for writing, equal to `source`. Durable when it returns.
Result<CopyMethod> copy_file(FileDevice& source, FileDevice& target, const CopyObserver& observer);

// The same from any device, by bytes, into a file that was empty. The observer is called from this thread.
Result<void> copy_device(BlockDevice& source, FileDevice& target, const CopyObserver& observer);

// Shows the observer what is on a device.
Result<void> read_device(BlockDevice& source, const CopyObserver& observer);

// Shows the observer what is in a file.
Result<void> read_through(FileDevice& file, const CopyObserver& observer);

}  // namespace varve
