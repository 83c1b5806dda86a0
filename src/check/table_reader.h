// Reads tables of one cluster each, in ascending order, in large pieces, on a thread of its own: while one piece is
// looked at, the next one is read.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/aligned_vector.h"
#include "check/layout.h"

namespace varve::check {

class TableReader {
 public:
  // `table(i)`: the cluster of the i-th of `count` tables. Both outlive the reader.
  TableReader(const ImageFile& file, unsigned cluster_bits, uint64_t count, std::function<uint64_t(uint64_t)> table);
  TableReader(const TableReader&) = delete;
  TableReader& operator=(const TableReader&) = delete;
  ~TableReader();

  struct Piece {
    uint64_t first = 0;                 // index of the first table
    std::span<const std::byte> tables;  // whole clusters; none: that was the last piece
  };
  // Valid until the next call.
  Result<Piece> next();

 private:
  struct Buffer {
    AlignedVector<std::byte> bytes;
    Piece piece;
    bool is_full = false;
  };
  void run();
  Result<uint64_t> fill(uint64_t first, std::span<std::byte> buffer) const;

  const ImageFile& file_;
  unsigned cluster_bits_;
  uint64_t count_;
  std::function<uint64_t(uint64_t)> table_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Buffer buffers_[2];
  unsigned taken_ = 0;  // pieces that next() gave out
  bool stopping_ = false;
  std::optional<Error> error_;
  std::thread thread_;  // none where there is little to read
  uint64_t done_ = 0;   // without a thread
};

}  // namespace varve::check
