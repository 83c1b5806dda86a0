#include "transfer/checksum.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "base/zero_bytes.h"
#include "crypto/hash.h"

namespace varve {

namespace {

constexpr size_t kPiece = size_t{1} << 20;
constexpr size_t kPieces = 8;
constexpr size_t kBlock = size_t{64} << 10;

std::string hexadecimal(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

}  // namespace

// A ring of pieces between whoever adds and the thread that computes.
class Checksum::Worker {
 public:
  explicit Worker(crypto::RunningHash hash) : hash_(std::move(hash)), thread_([this] { compute(); }) {}
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() { stop(); }

  void add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const size_t length = std::min(bytes.size(), kPiece);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return filled_ < kPieces; });
      Piece& piece = pieces_[(first_ + filled_) % kPieces];
      lock.unlock();  // nobody else touches a piece that is not filled
      piece.bytes.resize(kPiece);
      std::memcpy(piece.bytes.data(), bytes.data(), length);
      piece.length = length;
      lock.lock();
      ++filled_;
      changed_.notify_all();
      bytes = bytes.subspan(length);
    }
  }

  Result<std::string> finish() {
    stop();
    TRY(std::move(outcome_));
    std::array<std::byte, 32> digest{};
    TRY(hash_.finish(digest));
    return hexadecimal(digest);
  }

 private:
  struct Piece {
    std::vector<std::byte> bytes;
    size_t length = 0;
  };

  void compute() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return filled_ > 0 || ended_; });
      if (filled_ == 0) return;
      const Piece& piece = pieces_[first_];
      lock.unlock();
      auto updated = hash_.update(std::span(piece.bytes).first(piece.length));
      lock.lock();
      if (!updated && outcome_) outcome_ = std::move(updated);
      first_ = (first_ + 1) % kPieces;
      --filled_;
      changed_.notify_all();
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
  }

  crypto::RunningHash hash_;
  Result<void> outcome_;
  std::array<Piece, kPieces> pieces_;
  size_t first_ = 0;
  size_t filled_ = 0;
  bool ended_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;  // last: it uses everything above
};

Checksum::Checksum(ChecksumKind kind, std::unique_ptr<Worker> worker) : kind_(kind), worker_(std::move(worker)) {}
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum::~Checksum() = default;

Result<Checksum> Checksum::begin(ChecksumKind kind) {
  return Checksum(kind, std::make_unique<Worker>(TRY(crypto::RunningHash::make(crypto::HashAlgorithm::kSha256))));
}

void Checksum::add(std::span<const std::byte> bytes) {
  if (kind_ == ChecksumKind::kSha256) return worker_->add(bytes);
  while (!bytes.empty()) {
    const size_t length = std::min(kBlock - block_.size(), bytes.size());
    if (length == kBlock) {
      add_block(bytes.first(length));
    } else {
      block_.insert(block_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
      if (block_.size() == kBlock) {
        add_block(block_);
        block_.clear();
      }
    }
    bytes = bytes.subspan(length);
  }
}

void Checksum::add_zeroes(uint64_t length) {
  static constexpr std::array<std::byte, kBlock> kZeroes{};
  if (kind_ == ChecksumKind::kWithoutZeroes) {
    const uint64_t first = block_.empty() ? 0 : std::min<uint64_t>(kBlock - block_.size(), length);
    add(std::span(kZeroes).first(first));
    length -= first;
    zero_blocks_ += length / kBlock;
    length %= kBlock;
  }
  for (uint64_t done = 0; done < length; done += kBlock) {
    add(std::span(kZeroes).first(std::min<uint64_t>(kBlock, length - done)));
  }
}

void Checksum::add_block(std::span<const std::byte> block) {
  if (all_zero(block)) {
    ++zero_blocks_;
    return;
  }
  end_zeroes();
  worker_->add(block);
}

void Checksum::end_zeroes() {
  std::array<std::byte, 8> count{};
  for (size_t i = 0; i < count.size(); ++i) count[i] = static_cast<std::byte>(zero_blocks_ >> (8 * i));
  worker_->add(count);
  zero_blocks_ = 0;
}

Result<std::string> Checksum::finish() {
  if (kind_ == ChecksumKind::kWithoutZeroes) {
    if (!block_.empty()) add_block(block_);
    end_zeroes();
  }
  return worker_->finish();
}

Result<std::string> checksum_of(std::string_view text) {
  auto hash = TRY(crypto::RunningHash::make(crypto::HashAlgorithm::kSha256));
  TRY(hash.update(std::as_bytes(std::span(text))));
  std::array<std::byte, 32> digest{};
  TRY(hash.finish(digest));
  return hexadecimal(digest);
}

}  // namespace varve
