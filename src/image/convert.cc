#include "image/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/checked.h"
#include "image/open.h"

namespace varve::image {

namespace {

constexpr uint64_t kBufferSize = 2u << 20;
constexpr size_t kBuffersInFlight = 4;
constexpr size_t kPiecesInFlight = 1024;               // ranges of zeroes need no buffer
constexpr uint64_t kExtentWindow = uint64_t{1} << 30;  // how far the source is asked ahead
constexpr uint64_t kZeroUnit = 4096;                   // zeroes are looked for in units of this many bytes

using Buffer = std::unique_ptr<std::byte[]>;

// A piece of the target's disk: bytes to write, or (without a buffer) a range that shall read as zeroes.
struct Piece {
  uint64_t offset = 0;
  uint64_t length = 0;
  Buffer buffer;
};

// Hands pieces from the reading to the writing thread, and their buffers back.
class Pipe {
 public:
  Pipe() {
    for (size_t i = 0; i < kBuffersInFlight; ++i)
      free_.push_back(std::make_unique_for_overwrite<std::byte[]>(kBufferSize));
  }

  // Null when the writer gave up.
  Buffer take_buffer() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || !free_.empty(); });
    if (stopped_) return nullptr;
    Buffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void give_back(Buffer buffer) {
    const std::scoped_lock lock(mutex_);
    free_.push_back(std::move(buffer));
    changed_.notify_all();
  }
  void push(Piece piece) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || pieces_.size() < kPiecesInFlight; });
    pieces_.push_back(std::move(piece));
    changed_.notify_all();
  }
  // The reader is through, well or not.
  void end() {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }
  // The writer gives up.
  void stop() {
    const std::scoped_lock lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  bool stopped() {
    const std::scoped_lock lock(mutex_);
    return stopped_;
  }
  std::optional<Piece> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || !pieces_.empty(); });
    if (pieces_.empty()) return std::nullopt;
    Piece piece = std::move(pieces_.front());
    pieces_.pop_front();
    changed_.notify_all();
    return piece;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  std::vector<Buffer> free_;
  bool ended_ = false;
  bool stopped_ = false;
};

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

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

// Extents of a source in windows, so that a petabyte's worth of them is never in memory at once.
template <typename Visit>
Result<void> for_each_extent(const ConvertSource& source, bool only_top, Visit visit) {
  for (uint64_t offset = 0; offset < source.size; offset += kExtentWindow) {
    const uint64_t length = std::min(kExtentWindow, source.size - offset);
    const std::vector<Extent> extents =
        only_top ? TRY(top_extents(source, offset, length)) : TRY(visible_extents(source.layers, offset, length));
    for (const Extent& extent : extents) TRY(visit(extent));
  }
  return {};
}

Result<uint64_t> data_bytes(const std::vector<ConvertSource>& sources, bool only_top) {
  uint64_t total = 0;
  for (const ConvertSource& source : sources) {
    TRY(for_each_extent(source, only_top, [&](const Extent& extent) -> Result<void> {
      if (extent.kind == ExtentKind::kData) total += extent.length;
      return {};
    }));
  }
  return total;
}

class Reader {
 public:
  Reader(const std::vector<ConvertSource>& sources, const ConvertOptions& options, Pipe& pipe)
      : sources_(sources), options_(options), pipe_(pipe) {}

  Result<void> run() {
    uint64_t base = 0;
    for (const ConvertSource& source : sources_) {
      Result<void> read = for_each_extent(source, options_.only_top_layer, [&](const Extent& extent) -> Result<void> {
        if (pipe_.stopped()) return make_error(ErrorKind::kInterrupted, "the writer gave up");
        return take(source, base, extent);
      });
      TRY(std::move(read));
      base += source.size;
    }
    return {};
  }

 private:
  Result<void> take(const ConvertSource& source, uint64_t base, const Extent& extent) {
    switch (extent.kind) {
      case ExtentKind::kUnallocated:  // the target's backing file has it
        return {};
      case ExtentKind::kZero:
        if (options_.sparse_size != 0) {
          push_zeroes(base + extent.offset, extent.length);
          return {};
        }
        [[fallthrough]];
      case ExtentKind::kData:
        for (uint64_t done = 0; done < extent.length;) {
          // Ends at multiples of the buffer size, so that clusters of the target are written whole.
          const uint64_t at = extent.offset + done;
          const uint64_t length = std::min(extent.length - done, kBufferSize - (base + at) % kBufferSize);
          Buffer buffer = pipe_.take_buffer();
          if (!buffer) return make_error(ErrorKind::kInterrupted, "the writer gave up");
          Result<void> read = source.layers.front()->read_at(at, {buffer.get(), length});
          if (!read) return failed("reading", base + at, std::move(read).error());
          pipe_.push({base + at, length, std::move(buffer)});
          done += length;
        }
        return {};
    }
    return {};
  }

  void push_zeroes(uint64_t offset, uint64_t length) {
    if (!options_.target_is_zero) pipe_.push({offset, length, nullptr});
  }

  const std::vector<ConvertSource>& sources_;
  const ConvertOptions& options_;
  Pipe& pipe_;
};

class Writer {
 public:
  Writer(BlockDevice& target, const ConvertOptions& options, Pipe& pipe, uint64_t total)
      : target_(target), options_(options), pipe_(pipe), total_(total) {}

  Result<void> run() {
    report();
    while (std::optional<Piece> piece = pipe_.pop()) {
      if (!piece->buffer) {
        TRY(zero(piece->offset, piece->length));
        continue;
      }
      TRY(write_sparsely(piece->offset, {piece->buffer.get(), piece->length}));
      done_ += piece->length;
      pipe_.give_back(std::move(piece->buffer));
      report();
    }
    return {};
  }

 private:
  void report() {
    if (options_.progress) options_.progress(done_, total_);
  }

  Result<void> write(uint64_t offset, std::span<const std::byte> data) {
    Result<void> written = target_.write_at(offset, data);
    if (!written) return failed("writing", offset, std::move(written).error());
    return {};
  }

  Result<void> zero(uint64_t offset, uint64_t length) {
    if (options_.target_is_zero) return {};
    Result<void> written = target_.write_zeroes(offset, length, ZeroMode::kMayUnmap);
    if (!written) return failed("writing", offset, std::move(written).error());
    return {};
  }

  // Writes `data` but for its runs of zeroes that are long enough.
  Result<void> write_sparsely(uint64_t offset, std::span<const std::byte> data) {
    if (options_.sparse_size == 0) return write(offset, data);
    size_t data_begin = 0;  // what is not yet written begins here
    size_t at = 0;
    while (at < data.size()) {
      const size_t zeroes = zero_run(offset, data, at);
      if (zeroes >= options_.sparse_size || (zeroes != 0 && zeroes == data.size() - at && at == data_begin)) {
        if (at != data_begin) TRY(write(offset + data_begin, data.subspan(data_begin, at - data_begin)));
        TRY(zero(offset + at, zeroes));
        data_begin = at + zeroes;
        at = data_begin;
      } else {
        at += zeroes;
        at = std::min(data.size(), next_unit(offset, at));
      }
    }
    if (data_begin != data.size()) return write(offset + data_begin, data.subspan(data_begin));
    return {};
  }

  // The length of the run of zero bytes at data[at], in whole units (of the target's offsets) but for the data's end.
  static size_t zero_run(uint64_t offset, std::span<const std::byte> data, size_t at) {
    size_t end = at;
    while (end < data.size()) {
      const size_t next = std::min(data.size(), next_unit(offset, end));
      if (!is_zero(data.subspan(end, next - end))) break;
      end = next;
    }
    return end - at;
  }
  static size_t next_unit(uint64_t offset, size_t at) {
    return static_cast<size_t>(align_down(offset + at, kZeroUnit) + kZeroUnit - offset);
  }

  BlockDevice& target_;
  const ConvertOptions& options_;
  Pipe& pipe_;
  uint64_t total_;
  uint64_t done_ = 0;
};

}  // namespace

Result<void> convert(const std::vector<ConvertSource>& sources, BlockDevice& target, const ConvertOptions& options) {
  uint64_t total = 0;
  if (options.progress) total = TRY(data_bytes(sources, options.only_top_layer));
  Pipe pipe;
  Result<void> read;
  std::thread reading([&] {
    read = Reader(sources, options, pipe).run();
    pipe.end();
  });
  Result<void> written = Writer(target, options, pipe, total).run();
  if (!written) pipe.stop();
  reading.join();
  if (!written) return written;
  return read;
}

}  // namespace varve::image
