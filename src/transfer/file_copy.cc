#include "transfer/file_copy.h"

#include <algorithm>
#include <cstring>

#include "base/aligned_vector.h"
#include "image/offload.h"
#include "io/file_limits.h"

namespace varve {

namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;
// Extents are asked for in windows, so that a file in millions of pieces needs no list of them all.
constexpr uint64_t kWindow = uint64_t{1} << 30;

class Copying {
 public:
  Copying(FileDevice& source, FileDevice* target, const CopyObserver& observer, uint64_t present, bool target_has_holes)
      : source_(source),
        target_(target),
        observer_(observer),
        present_(present),
        target_has_holes_(target_has_holes),
        buffer_(kPiece),
        there_(kPiece) {}

  Result<void> run(uint64_t size);

 private:
  Result<void> data(uint64_t offset, size_t length);
  Result<void> hole(uint64_t offset, uint64_t length);
  Result<void> tell(uint64_t done) const { return observer_.progress ? observer_.progress(done) : Result<void>(); }

  FileDevice& source_;
  FileDevice* target_;  // null: only looked through
  const CopyObserver& observer_;
  uint64_t present_;  // bytes that the target had before
  bool target_has_holes_;
  AlignedVector<std::byte> buffer_;
  AlignedVector<std::byte> there_;
};

Result<void> Copying::data(uint64_t offset, size_t length) {
  const std::span piece = std::span(buffer_).first(length);
  TRY(source_.read_at(offset, piece));
  if (observer_.bytes) observer_.bytes(piece);
  if (target_ == nullptr) return {};
  if (offset + length <= present_) {
    const std::span there = std::span(there_).first(length);
    TRY(target_->read_at(offset, there));
    if (std::memcmp(there.data(), piece.data(), length) == 0) return {};
  }
  TRY(target_->write_at(offset, piece));
  target_->start_write_back(offset, length);
  return {};
}

Result<void> Copying::hole(uint64_t offset, uint64_t length) {
  if (observer_.zeroes) observer_.zeroes(length);
  if (target_ == nullptr) return {};
  if (target_has_holes_) {
    if (offset >= present_) return {};
    return target_->write_zeroes(offset, std::min(length, present_ - offset), ZeroMode::kMayUnmap);
  }
  std::ranges::fill(buffer_, std::byte{});
  for (uint64_t at = 0; at < length; at += kPiece) {
    TRY(target_->write_at(offset + at, std::span(buffer_).first(std::min(kPiece, length - at))));
    TRY(tell(offset + at));
  }
  return {};
}

Result<void> Copying::run(uint64_t size) {
  for (uint64_t window = 0; window < size; window += kWindow) {
    for (const Extent& extent : TRY(source_.extents(window, std::min(kWindow, size - window)))) {
      if (extent.kind != ExtentKind::kData) {
        TRY(hole(extent.offset, extent.length));
        continue;
      }
      const uint64_t end = extent.offset + extent.length;
      for (uint64_t at = extent.offset; at < end; at += kPiece) {
        TRY(data(at, std::min(kPiece, end - at)));
        TRY(tell(at));
      }
    }
  }
  return tell(size);
}

}  // namespace

Result<CopyMethod> copy_file(FileDevice& source, FileDevice& target, const CopyObserver& observer) {
  const uint64_t size = TRY(source.size());
  const uint64_t present = std::min(size, TRY(target.size()));
  const bool has_holes = file_limits(target.name()).has_holes;
  // Grown at once: blocks are shared between files of one size, and a hole at the end is there without being written.
  // A file system without holes would write zeroes first, and the data then.
  if (has_holes || TRY(target.size()) > size) TRY(target.resize(size));
  if (has_holes && TRY(image::share_blocks(source, target, size))) {
    TRY(target.sync_all());
    if (observer.progress) TRY(observer.progress(size));
    return CopyMethod::kSharedBlocks;
  }
  TRY(Copying(source, &target, observer, present, has_holes).run(size));
  TRY(target.sync_all());
  return CopyMethod::kBytes;
}

Result<void> read_through(FileDevice& file, const CopyObserver& observer) {
  return Copying(file, nullptr, observer, 0, true).run(TRY(file.size()));
}

}  // namespace varve
