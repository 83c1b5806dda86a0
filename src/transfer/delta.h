// What of a file differs from an earlier one, and that as a qcow2 image: its disk is the file, byte for byte, and it
// stands on the earlier file.
//
// Both files are read whole, and both checksums computed on the way. So the result does not depend on anything that
// tables or times say: whatever bytes the earlier file has, delta and earlier file together are the new one.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/block_device.h"
#include "qcow2/image.h"
#include "store/layout.h"
#include "transfer/copied_file.h"
#include "transfer/export_chain.h"

namespace varve {

struct ComparedFiles {
  std::string sha256;          // of the file
  std::string earlier_sha256;  // of the earlier one
};

// Calls `differing` with stretches of clusters of the file that are others than in the earlier one, in order, from this
// thread; the last cluster ends with the file's last sector, which zeroes fill. `progress`: bytes of the file.
Result<ComparedFiles> compare_files(
    BlockDevice& file, BlockDevice& earlier,
    const std::function<Result<void>(uint64_t offset, std::span<const std::byte> bytes)>& differing,
    const std::function<Result<void>(uint64_t done)>& progress);

// A delta that is being written. The file comes into being when there is something to write to it.
class DeltaFile {
 public:
  // `layout` outlives it, as `earlier` does. `size`: of the file that it is the delta of, in bytes.
  DeltaFile(const Layout& layout, std::string root_path, uint64_t size, DeltaBacking backing,
            std::shared_ptr<BlockDevice> earlier)
      : layout_(layout),
        path_(std::move(root_path)),
        size_(size),
        backing_(std::move(backing)),
        earlier_(std::move(earlier)) {}

  // Whole clusters.
  Result<void> write(uint64_t offset, std::span<const std::byte> bytes);
  Result<void> create();  // even if it is to have nothing in it
  bool is_there() const { return image_ != nullptr; }
  struct Written {
    uint64_t bytes = 0;  // of the image's file
    std::string sha256;
  };
  // Durable when it returns.
  Result<Written> finish();

 private:
  const Layout& layout_;
  std::string path_;
  uint64_t size_;
  DeltaBacking backing_;
  std::shared_ptr<BlockDevice> earlier_;
  std::optional<CopiedFile> file_;
  std::unique_ptr<qcow2::Image> image_;
};

}  // namespace varve
