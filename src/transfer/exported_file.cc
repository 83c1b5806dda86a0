#include "transfer/exported_file.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "image/open.h"
#include "image/raw_image.h"
#include "qcow2/padded_read.h"

namespace varve {

uint64_t in_sectors(uint64_t bytes) {
  return (bytes + image::kSectorSize - 1) / image::kSectorSize * image::kSectorSize;
}

void ExportedFile::forget_cached() const {
  for (const auto& file : files_) ::posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED);
}

Result<void> ExportedFile::read_at(uint64_t offset, std::span<std::byte> buffer) {
  const uint64_t there = offset < size_ ? std::min<uint64_t>(buffer.size(), size_ - offset) : 0;
  TRY(qcow2::read_padded(*layers_.front(), offset, buffer.first(there)));
  std::ranges::fill(buffer.subspan(there), std::byte{0});
  return {};
}

Result<std::vector<Extent>> ExportedFile::extents(uint64_t offset, uint64_t length) {
  if (offset >= size_) return std::vector<Extent>();
  std::vector<BlockDevice*> layers;
  for (const auto& layer : layers_) layers.push_back(layer.get());
  std::vector<Extent> extents = TRY(image::visible_extents(layers, offset, std::min(length, size_ - offset)));
  return extents;
}

}  // namespace varve
