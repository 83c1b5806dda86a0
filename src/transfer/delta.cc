#include "transfer/delta.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <future>

#include "base/aligned_vector.h"
#include "base/zero_bytes.h"
#include "transfer/checksum.h"
#include "transfer/file_copy.h"

namespace varve {

namespace {

// What is read, hashed and compared at the same time; a multiple of a cluster.
constexpr uint64_t kWindow = uint64_t{4} << 20;

struct Window {
  AlignedVector<std::byte> bytes = AlignedVector<std::byte>(kWindow);
  bool is_zero = false;  // then `bytes` are anything

  void clear() {
    if (!is_zero) return;
    std::ranges::fill(bytes, std::byte{0});
    is_zero = false;
  }
};

// One of the two files, read from its beginning to its end.
class Side {
 public:
  static Result<Side> begin(BlockDevice& device) {
    return Side(device, TRY(device.size()), TRY(Checksum::begin(ChecksumKind::kSha256)));
  }
  uint64_t size() const { return size_; }
  Result<std::string> checksum() { return checksum_.finish(); }

  // What lies behind the end is zeroes.
  Result<void> read(uint64_t offset, Window& window) {
    window.is_zero = true;
    if (offset >= size_) return {};
    const uint64_t length = std::min(kWindow, size_ - offset);
    const std::vector<Extent> extents = TRY(device_.extents(offset, length));
    window.is_zero = std::ranges::none_of(extents, [](const Extent& e) { return e.kind == ExtentKind::kData; });
    if (window.is_zero) {
      checksum_.add_zeroes(length);
      return {};
    }
    for (const Extent& extent : extents) {
      const std::span piece = std::span(window.bytes).subspan(extent.offset - offset, extent.length);
      if (extent.kind == ExtentKind::kData) {
        TRY(device_.read_at(extent.offset, piece));
      } else {
        std::ranges::fill(piece, std::byte{0});
      }
    }
    std::ranges::fill(std::span(window.bytes).subspan(length), std::byte{0});
    checksum_.add(std::span(window.bytes).first(length));
    return {};
  }

 private:
  Side(BlockDevice& device, uint64_t size, Checksum checksum)
      : device_(device), size_(size), checksum_(std::move(checksum)) {}

  BlockDevice& device_;
  uint64_t size_;
  Checksum checksum_;
};

Result<void> compare_windows(Window& window, Window& earlier, uint64_t offset, uint64_t length,
                             const std::function<Result<void>(uint64_t, std::span<const std::byte>)>& differing) {
  if (window.is_zero && earlier.is_zero) return {};
  window.clear();
  earlier.clear();
  const auto differs = [&](uint64_t at) {
    return std::memcmp(window.bytes.data() + at, earlier.bytes.data() + at, std::min(kDeltaCluster, length - at)) != 0;
  };
  for (uint64_t at = 0; at < length;) {
    uint64_t end = at;
    while (end < length && differs(end)) end += kDeltaCluster;
    end = std::min(end, length);
    if (end > at) TRY(differing(offset + at, std::span(window.bytes).subspan(at, end - at)));
    at = std::max(end, at + kDeltaCluster);
  }
  return {};
}

}  // namespace

Result<ComparedFiles> compare_files(
    BlockDevice& file, BlockDevice& earlier,
    const std::function<Result<void>(uint64_t offset, std::span<const std::byte> bytes)>& differing,
    const std::function<Result<void>(uint64_t done)>& progress) {
  Side here = TRY(Side::begin(file));
  Side then = TRY(Side::begin(earlier));
  const uint64_t disk = in_sectors(here.size());
  const uint64_t end = std::max(here.size(), then.size());
  // While one pair of windows is compared, and what differs is written, the next one is read.
  std::array<Window, 2> here_windows;
  std::array<Window, 2> then_windows;
  std::future<Result<void>> here_read;  // behind the windows: joined before those go
  std::future<Result<void>> then_read;
  const auto start = [&](uint64_t offset, size_t slot) {
    here_read = std::async(std::launch::async, [&, offset, slot] { return here.read(offset, here_windows[slot]); });
    then_read = std::async(std::launch::async, [&, offset, slot] { return then.read(offset, then_windows[slot]); });
  };
  if (end > 0) start(0, 0);
  size_t slot = 0;
  for (uint64_t offset = 0; offset < end; offset += kWindow, slot ^= 1) {
    auto read = here_read.get();
    auto read_then = then_read.get();
    TRY(std::move(read));
    TRY(std::move(read_then));
    if (offset + kWindow < end) start(offset + kWindow, slot ^ 1);
    if (offset < disk) {
      TRY(compare_windows(here_windows[slot], then_windows[slot], offset, std::min(kWindow, disk - offset), differing));
    }
    if (progress) TRY(progress(std::min(offset + kWindow, here.size())));
  }
  ComparedFiles compared;
  compared.sha256 = TRY(here.checksum());
  compared.earlier_sha256 = TRY(then.checksum());
  return compared;
}

Result<void> DeltaFile::create() {
  file_ = TRY(CopiedFile::create(layout_, path_));
  TRY(qcow2::Image::create(file_->file(), {.size = in_sectors(size_),
                                           .cluster_size = kDeltaCluster,
                                           .backing_file = backing_.name,
                                           .backing_format = backing_.format}));
  image_ = TRY(qcow2::Image::open(file_->device(), {.writable = true}));
  image_->set_backing(earlier_);
  return {};
}

Result<void> DeltaFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  if (!image_) TRY(create());
  // Zeroes where the earlier file has data become clusters without a place.
  for (size_t at = 0; at < bytes.size();) {
    const auto is_zero = [&](size_t from) {
      return all_zero(bytes.subspan(from, std::min<size_t>(kDeltaCluster, bytes.size() - from)));
    };
    const bool zero = is_zero(at);
    size_t end = at;
    while (end < bytes.size() && is_zero(end) == zero) end += kDeltaCluster;
    end = std::min(end, bytes.size());
    TRY(zero ? image_->write_zeroes(offset + at, end - at, ZeroMode::kMayUnmap)
             : image_->write_at(offset + at, bytes.subspan(at, end - at)));
    if (!zero) image_->start_write_back(offset + at, end - at);
    at = end;
  }
  return {};
}

Result<DeltaFile::Written> DeltaFile::finish() {
  TRY(image_->flush());
  image_.reset();
  TRY(file_->file().sync_all());
  Checksum checksum = TRY(Checksum::begin(ChecksumKind::kSha256));
  TRY(read_through(file_->file(), {.bytes = [&](std::span<const std::byte> bytes) { checksum.add(bytes); },
                                   .zeroes = [&](uint64_t length) { checksum.add_zeroes(length); },
                                   .progress = {}}));
  Written written{.bytes = TRY(file_->file().size()), .sha256 = TRY(checksum.finish())};
  file_.reset();
  return written;
}

}  // namespace varve
