#include "check/table_reader.h"

#include <algorithm>

namespace varve::check {

namespace {
constexpr uint64_t kPieceBytes = uint64_t{512} << 10;
constexpr uint64_t kWorthAThread = uint64_t{4} << 20;
}  // namespace

TableReader::TableReader(const ImageFile& file, unsigned cluster_bits, uint64_t count,
                         std::function<uint64_t(uint64_t)> table)
    : file_(file), cluster_bits_(cluster_bits), count_(count), table_(std::move(table)) {
  const uint64_t cluster_size = uint64_t{1} << cluster_bits;
  const uint64_t piece = std::max(cluster_size, std::min(kPieceBytes, count * cluster_size));
  buffers_[0].bytes.resize(piece);
  if (count * cluster_size < kWorthAThread) return;
  buffers_[1].bytes.resize(piece);
  thread_ = std::thread([this] { run(); });
}

TableReader::~TableReader() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

// How many tables fit.
Result<uint64_t> TableReader::fill(uint64_t first, std::span<std::byte> buffer) const {
  const uint64_t cluster_size = uint64_t{1} << cluster_bits_;
  const uint64_t count = std::min(count_ - first, buffer.size() / cluster_size);
  for (uint64_t i = 0; i < count;) {
    // Neighbours are one read.
    const uint64_t start = table_(first + i);
    uint64_t end = i + 1;
    while (end < count && table_(first + end) == start + (end - i)) ++end;
    TRY(file_.read(start << cluster_bits_, buffer.subspan(i * cluster_size, (end - i) * cluster_size)));
    i = end;
  }
  return count;
}

void TableReader::run() {
  uint64_t first = 0;
  for (unsigned turn = 0; first < count_; ++turn) {
    Buffer& buffer = buffers_[turn % 2];
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !buffer.is_full || stopping_; });
      if (stopping_) return;
    }
    const Result<uint64_t> count = fill(first, buffer.bytes);
    {
      const std::lock_guard lock(mutex_);
      if (!count) {
        error_ = count.error();
      } else {
        buffer.piece = {first, std::span(buffer.bytes).first(*count << cluster_bits_)};
        buffer.is_full = true;
      }
    }
    changed_.notify_all();
    if (!count) return;
    first += *count;
  }
}

Result<TableReader::Piece> TableReader::next() {
  if (!thread_.joinable()) {
    if (done_ == count_) return Piece{};
    const uint64_t first = done_;
    const uint64_t count = TRY(fill(first, buffers_[0].bytes));
    done_ += count;
    return Piece{first, std::span(buffers_[0].bytes).first(count << cluster_bits_)};
  }
  std::unique_lock lock(mutex_);
  if (taken_ > 0) {
    Buffer& last = buffers_[(taken_ - 1) % 2];
    const uint64_t end = last.piece.first + (last.piece.tables.size() >> cluster_bits_);
    last.is_full = false;
    changed_.notify_all();
    if (end == count_) return Piece{};
  }
  Buffer& buffer = buffers_[taken_ % 2];
  changed_.wait(lock, [&] { return buffer.is_full || error_; });
  if (!buffer.is_full) return *error_;
  ++taken_;
  return buffer.piece;
}

}  // namespace varve::check
