#include "image/commit.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "image/buffer_pool.h"
#include "image/parallel.h"
#include "image/rate_limit.h"
#include "image/write_behind.h"

namespace varve::image {

namespace {

constexpr uint64_t kWindow = uint64_t{1} << 30;
constexpr uint64_t kPiece = uint64_t{2} << 20;

// Calls visit(offset, length, zero) for what the layers hold themselves, top first.
template <typename Visit>
Result<void> for_each_held(std::span<const std::shared_ptr<BlockDevice>> layers, uint64_t offset, uint64_t length,
                           const Visit& visit) {
  if (layers.empty()) return {};
  uint64_t covered = 0;
  for (const Extent& extent : TRY(layers[0]->extents(offset, length))) {
    covered += extent.length;
    if (extent.kind == ExtentKind::kUnallocated) {
      TRY(for_each_held(layers.subspan(1), extent.offset, extent.length, visit));
    } else {
      visit(extent.offset, extent.length, extent.kind == ExtentKind::kZero);
    }
  }
  // Behind the end of a layer that is shorter than the ones above there are zeroes, whatever is below it.
  if (covered < length) visit(offset + covered, length - covered, true);
  return {};
}

struct Piece {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool zero = false;
};

Result<void> copy(BlockDevice& top, BlockDevice& base, const Piece& piece, BufferPool& buffers, WriteBehind& behind,
                  Turns::Turn& turn) {
  if (piece.zero) TRY(turn.wait());
  if (piece.zero) return base.write_zeroes(piece.offset, piece.length, ZeroMode::kMayUnmap);
  BufferPool::Lease lease(buffers);
  const std::span<std::byte> buffer = lease.first(piece.length);
  TRY(top.read_at(piece.offset, buffer));
  TRY(turn.wait());
  TRY(base.write_in_turn(piece.offset, buffer, [&] { turn.pass(); }));
  behind.written(piece.offset, piece.length);
  return {};
}

}  // namespace

Result<void> commit_to(std::span<const std::shared_ptr<BlockDevice>> layers, size_t base_index,
                       const CommitOptions& options) {
  BlockDevice& top = *layers.front();
  BlockDevice& base = *layers[base_index];
  const uint64_t size = TRY(top.size());
  if (TRY(base.size()) < size) TRY(base.resize(size));
  const auto above = layers.first(base_index);
  RateLimit limit(options.bytes_per_second);
  BufferPool buffers(kPiece);
  WriteBehind behind(base);
  std::mutex mutex;
  for (uint64_t offset = 0; offset < size; offset += kWindow) {
    const uint64_t window = std::min(kWindow, size - offset);
    std::vector<Piece> pieces;
    TRY(for_each_held(above, offset, window, [&](uint64_t at, uint64_t length, bool zero) {
      while (length != 0) {  // zeroes in one piece, data up to multiples of the buffer
        const uint64_t part = zero ? length : std::min(length, kPiece - at % kPiece);
        pieces.push_back({at, part, zero});
        at += part;
        length -= part;
      }
    }));
    TRY(for_each_in_turn(pieces.size(), copy_threads(), [&](size_t i, Turns::Turn& turn) -> Result<void> {
      if (options.interrupted && options.interrupted()) return make_error(ErrorKind::kInterrupted, "interrupted");
      if (!pieces[i].zero) limit.pass(pieces[i].length);
      TRY(copy(top, base, pieces[i], buffers, behind, turn));
      const std::scoped_lock lock(mutex);
      if (options.progress) options.progress(pieces[i].offset, size);
      return {};
    }));
    if (options.progress) options.progress(offset + window, size);
  }
  return base.flush();  // all of it is in the base | anything that stops covering it
}

}  // namespace varve::image
