#include "transfer/checksum.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "crypto/hash.h"

namespace varve {

namespace {

constexpr size_t kPiece = size_t{1} << 20;
constexpr size_t kPieces = 8;

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

Checksum::Checksum(std::unique_ptr<Worker> worker) : worker_(std::move(worker)) {}
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum::~Checksum() = default;

Result<Checksum> Checksum::begin() {
  return Checksum(std::make_unique<Worker>(TRY(crypto::RunningHash::make(crypto::HashAlgorithm::kSha256))));
}

void Checksum::add(std::span<const std::byte> bytes) {
  worker_->add(bytes);
}

Result<std::string> Checksum::finish() {
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
