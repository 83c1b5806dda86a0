#include "transfer/file_copy.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <vector>

#include "base/aligned_vector.h"
#include "image/offload.h"
#include "io/file_limits.h"

namespace varve {

namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;
// What is copied and observed at the same time: so much stays in the page cache from the one to the other.
constexpr uint64_t kWindow = uint64_t{32} << 20;
// Of a hole more: there is nothing to read. But somebody may want to see progress, or to stop it.
constexpr uint64_t kHoleWindow = uint64_t{4} << 30;

// Shows the observer what is in `extents` of the file.
class Observing {
 public:
  Observing(FileDevice& file, const CopyObserver& observer) : file_(file), observer_(observer), buffer_(kPiece) {}

  Result<void> observe(const std::vector<Extent>& extents) {
    if (!observer_.bytes) return {};
    for (const Extent& extent : extents) {
      if (extent.kind != ExtentKind::kData) {
        observer_.zeroes(extent.length);
        continue;
      }
      for (uint64_t done = 0; done < extent.length; done += kPiece) {
        const std::span piece = std::span(buffer_).first(std::min(kPiece, extent.length - done));
        TRY(file_.read_at(extent.offset + done, piece));
        observer_.bytes(piece);
      }
    }
    return {};
  }

 private:
  FileDevice& file_;
  const CopyObserver& observer_;
  AlignedVector<std::byte> buffer_;
};

class Copying {
 public:
  Copying(FileDevice& source, FileDevice& target, uint64_t present, bool has_holes)
      : source_(source),
        target_(target),
        present_(present),
        has_holes_(has_holes),
        buffer_(kPiece),
        there_(kPiece),
        zeroes_(kPiece) {}

  Result<void> copy(const std::vector<Extent>& extents) {
    for (const Extent& extent : extents) {
      TRY(extent.kind == ExtentKind::kData ? data(extent.offset, extent.length) : hole(extent.offset, extent.length));
      target_.start_write_back(extent.offset, extent.length);
    }
    return {};
  }

 private:
  Result<void> data(uint64_t offset, uint64_t length);
  Result<void> piece(uint64_t offset, size_t length);
  Result<void> hole(uint64_t offset, uint64_t length);

  FileDevice& source_;
  FileDevice& target_;
  uint64_t present_;  // bytes that the target had before
  bool has_holes_;    // the target's file system
  bool in_kernel_ = true;
  AlignedVector<std::byte> buffer_;
  AlignedVector<std::byte> there_;
  AlignedVector<std::byte> zeroes_;
};

Result<void> Copying::data(uint64_t offset, uint64_t length) {
  if (offset >= present_ && in_kernel_) {
    in_kernel_ = TRY(image::copy_range_in_kernel(source_, target_, offset, length));
    if (in_kernel_) return {};
  }
  for (uint64_t done = 0; done < length; done += kPiece) {
    TRY(piece(offset + done, std::min(kPiece, length - done)));
  }
  return {};
}

Result<void> Copying::piece(uint64_t offset, size_t length) {
  const std::span piece = std::span(buffer_).first(length);
  TRY(source_.read_at(offset, piece));
  if (offset + length <= present_) {
    const std::span there = std::span(there_).first(length);
    TRY(target_.read_at(offset, there));
    if (std::memcmp(there.data(), piece.data(), length) == 0) return {};
  }
  return target_.write_at(offset, piece);
}

Result<void> Copying::hole(uint64_t offset, uint64_t length) {
  if (has_holes_) {
    if (offset >= present_) return {};
    return target_.write_zeroes(offset, std::min(length, present_ - offset), ZeroMode::kMayUnmap);
  }
  for (uint64_t done = 0; done < length; done += kPiece) {
    TRY(target_.write_at(offset + done, std::span(zeroes_).first(std::min(kPiece, length - done))));
  }
  return {};
}

uint64_t next_data(const FileDevice& file, uint64_t offset, uint64_t size) {
  const off_t found = ::lseek(file.fd(), static_cast<off_t>(offset), SEEK_DATA);
  return found < 0 ? size : std::min(static_cast<uint64_t>(found), size);
}

// Window after window: what has to be done with each, and the observer's progress.
Result<void> for_each_window(FileDevice& file, const CopyObserver& observer,
                             const std::function<Result<void>(const std::vector<Extent>&)>& work) {
  const uint64_t size = TRY(file.size());
  for (uint64_t window = 0; window < size;) {
    std::vector<Extent> extents = TRY(file.extents(window, size - window > kWindow ? kWindow : size - window));
    uint64_t end = extents.back().offset + extents.back().length;
    if (extents.size() == 1 && extents[0].kind != ExtentKind::kData) {
      end = std::min(next_data(file, window, size), window + kHoleWindow);
      extents[0].length = end - window;
    }
    TRY(work(extents));
    window = end;
    if (observer.progress) TRY(observer.progress(window));
  }
  return {};
}

Result<void> for_each_piece(BlockDevice& source, const CopyObserver& observer,
                            const std::function<Result<void>(uint64_t, std::span<const std::byte>)>& work) {
  const uint64_t size = TRY(source.size());
  AlignedVector<std::byte> buffer(kPiece);
  for (uint64_t window = 0; window < size; window += std::min(kWindow, size - window)) {
    for (const Extent& extent : TRY(source.extents(window, kWindow))) {
      if (extent.kind != ExtentKind::kData) {
        if (observer.zeroes) observer.zeroes(extent.length);
        continue;
      }
      for (uint64_t done = 0; done < extent.length; done += kPiece) {
        const std::span piece = std::span(buffer).first(std::min(kPiece, extent.length - done));
        TRY(source.read_at(extent.offset + done, piece));
        if (observer.bytes) observer.bytes(piece);
        TRY(work(extent.offset + done, piece));
      }
    }
    if (observer.progress) TRY(observer.progress(std::min(window + kWindow, size)));
  }
  return {};
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
  Observing observing(source, observer);
  Copying copying(source, target, present, has_holes);
  TRY(for_each_window(source, observer, [&](const std::vector<Extent>& extents) -> Result<void> {
    std::future<Result<void>> observed = std::async(std::launch::async, [&] { return observing.observe(extents); });
    auto copied = copying.copy(extents);
    auto seen = observed.get();
    TRY(std::move(copied));
    return seen;
  }));
  TRY(target.sync_all());
  return CopyMethod::kBytes;
}

Result<void> copy_device(BlockDevice& source, FileDevice& target, const CopyObserver& observer) {
  TRY(target.resize(TRY(source.size())));  // what is not written reads as zeroes
  TRY(for_each_piece(source, observer, [&](uint64_t offset, std::span<const std::byte> piece) -> Result<void> {
    TRY(target.write_at(offset, piece));
    target.start_write_back(offset, piece.size());
    return {};
  }));
  return target.sync_all();
}

Result<void> read_device(BlockDevice& source, const CopyObserver& observer) {
  return for_each_piece(source, observer, [](uint64_t, std::span<const std::byte>) { return Result<void>(); });
}

Result<void> read_through(FileDevice& file, const CopyObserver& observer) {
  Observing observing(file, observer);
  return for_each_window(file, observer,
                         [&](const std::vector<Extent>& extents) { return observing.observe(extents); });
}

}  // namespace varve
