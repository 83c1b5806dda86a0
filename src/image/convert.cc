#include "image/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>

#include "base/checked.h"
#include "base/zero_bytes.h"
#include "image/buffer_pool.h"
#include "image/open.h"
#include "image/parallel.h"
#include "image/rate_limit.h"
#include "image/raw_image.h"

namespace varve::image {

namespace {

constexpr uint64_t kBufferSize = 2u << 20;             // of a thread; the largest cluster
constexpr uint64_t kCompressBufferSize = 256u << 10;   // where the work is in compressing, and memory goes to that
constexpr size_t kPiecesAtOnce = 4096;                 // are listed before they are copied
constexpr uint64_t kExtentWindow = uint64_t{1} << 30;  // how far the source is asked ahead
constexpr uint64_t kZeroUnit = 4096;                   // for zeroes, where every one of them is written

// A piece of the target's disk: bytes to copy, or a range that shall read as zeroes.
struct Piece {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool zero = false;
};

Error failed(const char* doing, uint64_t offset, Error cause) {
  cause.offset = offset;
  return std::move(cause).context(fmt::format("error while {} at byte {}", doing, offset));
}

// What the top layer itself holds, and the zeroes that nothing below it could have hidden.
Result<std::vector<Extent>> top_extents(const ConvertSource& source, uint64_t offset, uint64_t length) {
  const uint64_t below = source.layers.size() > 1 ? TRY(source.layers[1]->size()) : 0;
  std::vector<Extent> result;
  for (const Extent& extent : TRY(source.layers.front()->extents(offset, length))) {
    const uint64_t end = extent.offset + extent.length;
    if (extent.kind != ExtentKind::kUnallocated || end <= below) {
      result.push_back(extent);
      continue;
    }
    const uint64_t border = std::max(extent.offset, below);
    if (border > extent.offset) result.push_back({extent.offset, border - extent.offset, ExtentKind::kUnallocated});
    result.push_back({border, end - border, ExtentKind::kZero});
  }
  return result;
}

// Extents of a source in windows, so that a petabyte's worth of them is never in memory at once. Where a window fails
// and is to be salvaged, smaller ones are tried, down to one sector, as qemu-img does.
template <typename Visit>
Result<void> for_each_window(const ConvertSource& source, const ConvertOptions& options, Visit visit) {
  for (uint64_t offset = 0; offset < source.size;) {
    uint64_t length = std::min(kExtentWindow, source.size - offset);
    const auto extents_of_window = [&] {
      return options.only_top_layer ? top_extents(source, offset, length)
                                    : visible_extents(source.layers, offset, length);
    };
    const auto all_data = [&] { return std::vector<Extent>{{offset, length, ExtentKind::kData}}; };
    Result<std::vector<Extent>> extents = extents_of_window();
    while (!extents && options.salvage && length > kSectorSize) {
      length = div_round_up(div_round_up(length, kSectorSize), 4) * kSectorSize;
      extents = extents_of_window();
    }
    const bool shortened = length < std::min(kExtentWindow, source.size - offset);
    const auto salvage = [&] {  // what nobody can tell is taken for data
      if (extents || !options.salvage) return;
      options.salvage->unknown(offset, extents.error());
      extents = all_data();
    };
    salvage();
    if (shortened && options.compress_into != nullptr) {  // clusters are not written in parts
      const uint64_t cluster_size = options.compress_into->header().cluster_size();
      const bool is_part = length < cluster_size;
      length = is_part ? std::min(cluster_size, source.size - offset) : align_down(length, cluster_size);
      extents = is_part ? all_data() : extents_of_window();
      salvage();
    }
    if (!extents) {
      Error error = std::move(extents).error();
      error.offset = offset;
      return std::move(error).context(fmt::format("error while reading block status at offset {}", offset));
    }
    TRY(visit(*extents));
    offset += length;
  }
  return {};
}

Result<uint64_t> data_bytes(const std::vector<ConvertSource>& sources, const ConvertOptions& options) {
  uint64_t total = 0;
  for (const ConvertSource& source : sources) {
    TRY(for_each_window(source, options, [&](const std::vector<Extent>& extents) -> Result<void> {
      for (const Extent& extent : extents)
        if (extent.kind == ExtentKind::kData) total += extent.length;
      return {};
    }));
  }
  return total;
}

class Copier {
 public:
  Copier(const std::vector<ConvertSource>& sources, BlockDevice& target, const ConvertOptions& options, uint64_t total)
      : sources_(sources),
        target_(target),
        options_(options),
        total_(total),
        unit_(options.compress_into != nullptr ? options.compress_into->header().cluster_size()
              : options.sparse_size != 0       ? std::bit_floor(options.sparse_size)
                                               : kZeroUnit),
        buffer_size_(options.compress_into != nullptr ? std::max(unit_, kCompressBufferSize) : kBufferSize),
        sparse_size_(options.compress_into != nullptr ? unit_ : options.sparse_size),
        limit_(options.bytes_per_second) {
    for (const ConvertSource& source : sources) size_ += source.size;
    if (options.progress) options.progress(0, total);
  }

  // Cuts an extent (at an offset in the target) into pieces.
  void add_pieces(const Extent& extent, std::vector<Piece>& pieces) {
    if (extent.kind == ExtentKind::kUnallocated) return;  // the target's backing file has it
    uint64_t begin = extent.offset;
    uint64_t end = extent.offset + extent.length;
    const bool zero = extent.kind == ExtentKind::kZero && options_.sparse_size != 0;
    if (options_.compress_into != nullptr) {  // whole clusters, none of them twice
      if (!zero) begin = align_down(begin, unit_);
      if (!zero) end = std::min(align_up(end, unit_), size_);
      begin = std::max(begin, pieces_end_);
      if (begin >= end) return;
    }
    if (zero) {
      end = std::min(end, options_.target_zero_from);
      if (begin < end) pieces.push_back({begin, end - begin, true});
      return;
    }
    pieces_end_ = end;
    while (begin < end) {  // up to multiples of the buffer size, so that clusters of the target are written whole
      const uint64_t length = std::min(end - begin, buffer_size_ - begin % buffer_size_);
      pieces.push_back({begin, length, false});
      begin += length;
    }
  }

  Result<void> copy(const std::vector<Piece>& pieces) {
    const unsigned threads = options_.salvage ? 1 : copy_threads();
    return for_each_in_turn(pieces.size(), threads, [&](size_t i, Turns::Turn& turn) {
      if (options_.compress_into != nullptr) turn.pass();  // those are written as they get ready
      return copy(pieces[i], turn);
    });
  }

 private:
  Result<void> copy(const Piece& piece, Turns::Turn& turn) {
    if (options_.interrupted && options_.interrupted()) {
      Error error = make_error(ErrorKind::kInterrupted, "interrupted");
      error.offset = piece.offset;
      return error;
    }
    if (piece.zero) {
      TRY(turn.wait());
      return zero(piece.offset, piece.length);
    }
    limit_.pass(piece.length);
    BufferPool::Lease lease(buffers_);
    const std::span<std::byte> buffer = lease.first(piece.length);
    TRY(read(piece.offset, buffer));
    TRY(turn.wait());
    TRY(write_sparsely(piece.offset, buffer, turn));
    if (!options_.progress) return {};
    const std::scoped_lock lock(report_lock_);
    done_ += piece.length;
    options_.progress(done_, total_);
    return {};
  }

  // From the sources, one behind the other.
  Result<void> read(uint64_t offset, std::span<std::byte> buffer) {
    uint64_t base = 0;
    for (const ConvertSource& source : sources_) {
      if (buffer.empty()) break;
      if (offset < base + source.size) {
        const auto piece = buffer.first(std::min<uint64_t>(buffer.size(), base + source.size - offset));
        TRY(read(*source.layers.front(), base, offset, piece));
        offset += piece.size();
        buffer = buffer.subspan(piece.size());
      }
      base += source.size;
    }
    return {};
  }

  Result<void> read(BlockDevice& device, uint64_t base, uint64_t offset, std::span<std::byte> buffer) {
    Result<void> whole = device.read_at(offset - base, buffer);
    if (whole) return whole;
    if (!options_.salvage) return failed("reading", offset, std::move(whole).error());
    for (uint64_t at = 0; at < buffer.size(); at += kSectorSize) {
      const auto sector = buffer.subspan(at, std::min<uint64_t>(kSectorSize, buffer.size() - at));
      const Result<void> part = device.read_at(offset - base + at, sector);
      if (part) continue;
      std::memset(sector.data(), 0, sector.size());
      options_.salvage->unreadable(offset - base + at, part.error());
    }
    return {};
  }

  Result<void> write(uint64_t offset, std::span<const std::byte> data) {
    Result<void> written = options_.compress_into != nullptr ? options_.compress_into->write_compressed(offset, data)
                                                             : target_.write_at(offset, data);
    if (!written) return failed("writing", offset, std::move(written).error());
    return {};
  }

  // The last write of a piece: the next one need not wait until it is done.
  Result<void> write_last(uint64_t offset, std::span<const std::byte> data, Turns::Turn& turn) {
    if (options_.compress_into != nullptr) return write(offset, data);
    Result<void> written = target_.write_in_turn(offset, data, [&] { turn.pass(); });
    if (!written) return failed("writing", offset, std::move(written).error());
    return {};
  }

  Result<void> zero(uint64_t offset, uint64_t length) {
    if (offset >= options_.target_zero_from) return {};
    length = std::min(length, options_.target_zero_from - offset);
    Result<void> written = target_.write_zeroes(offset, length, ZeroMode::kMayUnmap);
    if (!written) return failed("writing", offset, std::move(written).error());
    return {};
  }

  // Writes `data`, whose turn it is, but for its runs of zeroes that are long enough.
  Result<void> write_sparsely(uint64_t offset, std::span<const std::byte> data, Turns::Turn& turn) {
    if (options_.sparse_size == 0) return write_last(offset, data, turn);
    size_t data_begin = 0;  // what is not yet written begins here
    size_t at = 0;
    while (at < data.size()) {
      const size_t zeroes = zero_run(offset, data, at);
      if (zeroes >= sparse_size_ || (zeroes != 0 && zeroes == data.size() - at && at == data_begin)) {
        if (at != data_begin) TRY(write(offset + data_begin, data.subspan(data_begin, at - data_begin)));
        TRY(zero(offset + at, zeroes));
        data_begin = at + zeroes;
        at = data_begin;
      } else {
        at += zeroes;
        at = std::min(data.size(), next_unit(offset, at));
      }
    }
    if (data_begin != data.size()) return write_last(offset + data_begin, data.subspan(data_begin), turn);
    return {};
  }

  // The length of the run of zero bytes at data[at], in whole units (of the target's offsets) but for the data's end.
  size_t zero_run(uint64_t offset, std::span<const std::byte> data, size_t at) const {
    size_t end = at;
    while (end < data.size()) {
      const size_t next = std::min(data.size(), next_unit(offset, end));
      if (!all_zero(data.subspan(end, next - end))) break;
      end = next;
    }
    return end - at;
  }
  size_t next_unit(uint64_t offset, size_t at) const {
    return static_cast<size_t>(align_down(offset + at, unit_) + unit_ - offset);
  }

  const std::vector<ConvertSource>& sources_;
  BlockDevice& target_;
  const ConvertOptions& options_;
  uint64_t total_;
  uint64_t size_ = 0;  // of all sources
  uint64_t unit_;      // zeroes are looked for in units of this many bytes
  uint64_t buffer_size_;
  uint64_t sparse_size_;     // and so many of them make a hole
  uint64_t pieces_end_ = 0;  // of the data pieces so far
  RateLimit limit_;
  BufferPool buffers_{buffer_size_};
  std::mutex report_lock_;
  uint64_t done_ = 0;
};

}  // namespace

Result<void> convert(const std::vector<ConvertSource>& sources, BlockDevice& target, const ConvertOptions& options) {
  uint64_t total = 0;
  if (options.progress || options.salvage) total = TRY(data_bytes(sources, options));
  Copier copier(sources, target, options, total);
  std::vector<Piece> pieces;
  const auto copy_pieces = [&]() -> Result<void> {
    Result<void> copied = copier.copy(pieces);
    pieces.clear();
    return copied;
  };
  uint64_t base = 0;
  for (const ConvertSource& source : sources) {
    TRY(for_each_window(source, options, [&](const std::vector<Extent>& extents) -> Result<void> {
      for (const Extent& extent : extents) {
        copier.add_pieces({base + extent.offset, extent.length, extent.kind}, pieces);
        if (pieces.size() >= kPiecesAtOnce) TRY(copy_pieces());
      }
      return options.salvage ? copy_pieces() : Result<void>();
    }));
    base += source.size;
  }
  return copy_pieces();
}

}  // namespace varve::image
