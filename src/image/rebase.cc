#include "image/rebase.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/checked.h"
#include "base/zero_bytes.h"
#include "image/buffer_pool.h"
#include "image/parallel.h"
#include "image/write_behind.h"
#include "io/memory_device.h"

namespace varve::image {

namespace {

constexpr uint64_t kWindow = uint64_t{1} << 30;  // chains are asked for extents this far at once
constexpr uint64_t kPiece = uint64_t{1} << 20;   // and read this much at once, or a whole cluster

// A stretch where the chains may differ.
struct Doubt {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool old_zero = false;
  bool new_zero = false;
};

void add_doubt(std::vector<Doubt>& doubts, Doubt doubt, uint64_t piece) {
  if (doubt.old_zero && doubt.new_zero) return;
  while (doubt.length != 0) {  // ends at multiples of the piece, so that units are not cut
    const uint64_t length = std::min(doubt.length, piece - doubt.offset % piece);
    doubts.push_back({doubt.offset, length, doubt.old_zero, doubt.new_zero});
    doubt.offset += length;
    doubt.length -= length;
  }
}

Result<std::vector<Doubt>> find_doubts(BlockDevice& overlay, std::span<const ChainLayer> old_chain,
                                       std::span<const ChainLayer> new_chain, uint64_t offset, uint64_t length,
                                       uint64_t piece) {
  std::vector<Doubt> doubts;
  for (const Extent& extent : TRY(overlay.extents(offset, length))) {
    if (extent.kind != ExtentKind::kUnallocated) continue;
    const std::vector<OwnedExtent> before = TRY(owned_extents(old_chain, extent.offset, extent.length));
    const std::vector<OwnedExtent> after = TRY(owned_extents(new_chain, extent.offset, extent.length));
    // Both cover the same stretch; walk them side by side.
    size_t a = 0;
    size_t b = 0;
    uint64_t at = extent.offset;
    while (a < before.size() && b < after.size()) {
      const uint64_t end = std::min(before[a].offset + before[a].length, after[b].offset + after[b].length);
      const bool same = !before[a].zero && !after[b].zero && before[a].owner == after[b].owner;
      if (!same) add_doubt(doubts, {at, end - at, before[a].zero, after[b].zero}, piece);
      at = end;
      if (before[a].offset + before[a].length == end) ++a;
      if (after[b].offset + after[b].length == end) ++b;
    }
  }
  return doubts;
}

// Behind the end of a backing file there are zeroes.
Result<void> read_chain(std::span<const ChainLayer> chain, uint64_t offset, std::span<std::byte> buffer) {
  const uint64_t size = chain.empty() ? 0 : TRY(chain[0].device->size());
  const uint64_t there = offset >= size ? 0 : std::min<uint64_t>(buffer.size(), size - offset);
  std::memset(buffer.data() + there, 0, buffer.size() - there);
  if (there == 0) return {};
  return chain[0].device->read_at(offset, buffer.first(there));
}

class Copier {
 public:
  Copier(BlockDevice& overlay, std::span<const ChainLayer> old_chain, std::span<const ChainLayer> new_chain,
         uint64_t old_size, uint64_t unit, uint64_t piece, const RebaseOptions& options)
      : overlay_(overlay),
        old_chain_(old_chain),
        new_chain_(new_chain),
        old_size_(old_size),
        unit_(unit),
        options_(options),
        buffers_(piece) {}

  Result<void> settle(const Doubt& doubt, Turns::Turn& turn) {
    BufferPool::Lease before_lease(buffers_);
    BufferPool::Lease after_lease(buffers_);
    const std::span<std::byte> before = before_lease.first(doubt.length);
    const std::span<std::byte> after = after_lease.first(doubt.length);
    if (doubt.old_zero) {
      std::memset(before.data(), 0, before.size());
    } else {
      TRY(read_chain(old_chain_, doubt.offset, before));
    }
    if (!doubt.new_zero) TRY(read_chain(new_chain_, doubt.offset, after));
    const auto is_same = [&](uint64_t from, uint64_t length) {
      if (doubt.new_zero) return all_zero(before.subspan(from, length));
      return std::memcmp(&before[from], &after[from], length) == 0;
    };
    std::vector<Run> differing;
    for (uint64_t at = 0; at < doubt.length;) {
      const uint64_t next = std::min(align_down(doubt.offset + at, unit_) + unit_ - doubt.offset, doubt.length);
      if (!is_same(at, next - at)) {
        if (!differing.empty() && differing.back().end == at)
          differing.back().end = next;
        else
          differing.push_back({at, next});
      }
      at = next;
    }
    TRY(turn.wait());
    for (const Run& run : differing) {
      const bool last = &run == &differing.back();
      TRY(keep(doubt.offset + run.begin, before.subspan(run.begin, run.end - run.begin), last ? &turn : nullptr));
    }
    return {};
  }

 private:
  struct Run {
    uint64_t begin = 0;
    uint64_t end = 0;
  };

  // Passes on `turn`, if there is one.
  Result<void> keep(uint64_t offset, std::span<const std::byte> bytes, Turns::Turn* turn) {
    if (options_.instead_of_writing) {  // in turn, and so by one thread at a time
      options_.instead_of_writing(offset, bytes.size(), offset >= old_size_);
      return {};
    }
    // As with QEMU, what was the backing file's own becomes data, zero or not.
    if (offset >= old_size_) return overlay_.write_zeroes(offset, bytes.size(), ZeroMode::kMayUnmap);
    TRY(overlay_.write_in_turn(offset, bytes, [&] {
      if (turn != nullptr) turn->pass();
    }));
    behind_.written(offset, bytes.size());
    return {};
  }

  BlockDevice& overlay_;
  std::span<const ChainLayer> old_chain_;
  std::span<const ChainLayer> new_chain_;
  uint64_t old_size_;
  uint64_t unit_;
  const RebaseOptions& options_;
  BufferPool buffers_;
  WriteBehind behind_{overlay_};
};

}  // namespace

Result<void> copy_for_rebase(qcow2::Image& overlay, std::span<const ChainLayer> old_chain,
                             std::span<const ChainLayer> new_chain, const RebaseOptions& options) {
  // With nothing below it, the image would leave zeroes unallocated; there the new backing file would show.
  if (overlay.backing() == nullptr) overlay.set_backing(std::make_shared<MemoryDevice>());
  const uint64_t size = TRY(overlay.size());
  const uint64_t old_size = old_chain.empty() ? 0 : TRY(old_chain[0].device->size());
  const uint64_t piece = std::max(kPiece, overlay.header().cluster_size());
  Copier copier(overlay, old_chain, new_chain, old_size, overlay.header().subcluster_size(), piece, options);
  std::mutex mutex;
  for (uint64_t offset = 0; offset < size; offset += kWindow) {
    const uint64_t length = std::min(kWindow, size - offset);
    const std::vector<Doubt> doubts = TRY(find_doubts(overlay, old_chain, new_chain, offset, length, piece));
    TRY(for_each_in_turn(doubts.size(), copy_threads(), [&](size_t i, Turns::Turn& turn) -> Result<void> {
      if (options.interrupted && options.interrupted()) return make_error(ErrorKind::kInterrupted, "interrupted");
      TRY(copier.settle(doubts[i], turn));
      const std::scoped_lock lock(mutex);
      if (options.progress) options.progress(doubts[i].offset, size);
      return {};
    }));
    if (options.progress) options.progress(offset + length, size);
  }
  return {};
}

}  // namespace varve::image
