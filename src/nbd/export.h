// One export of the plugin: a point of an image, opened once for all clients and all connections, so that what one has
// flushed all have flushed. Everything that is not nbdkit's C interface is here.
//
// An image is opened as soon as the server starts, for reading, so that what is wrong with it is said there and then.
// Where clients may write (the active state, or an overlay), the first client opens it for writing: before, nbdkit does
// not say whether -r was given. The locks are then a writer's.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "nbd/export_spec.h"
#include "qcow2/image.h"

namespace varve::nbd {

// What a client reads and writes. From any thread; of two requests for the same bytes at once either may win.
class OpenExport {
 public:
  static Result<std::shared_ptr<OpenExport>> open(const ExportSpec& spec, Access access);

  uint64_t size() const { return size_; }
  bool is_writable() const { return is_writable_; }
  uint64_t unit() const { return unit_; }  // image::Point::unit()

  Result<void> read(uint64_t offset, std::span<std::byte> buffer) { return disk_->read_at(offset, buffer); }
  Result<void> write(uint64_t offset, std::span<const std::byte> data) { return disk_->write_at(offset, data); }
  Result<void> zero(uint64_t offset, uint64_t length, ZeroMode mode) {
    return disk_->write_zeroes(offset, length, mode);
  }
  Result<void> trim(uint64_t offset, uint64_t length) { return disk_->discard(offset, length); }
  Result<void> flush() { return disk_->flush(); }
  // Data or zeroes, of [offset, offset+length).
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) {
    return image::visible_extents(layers_, offset, length);
  }

 private:
  OpenExport() = default;
  Result<void> lay_over(const ExportSpec& spec);

  std::shared_ptr<image::Point> point_;
  std::unique_ptr<qcow2::Image> overlay_;
  std::vector<BlockDevice*> layers_;
  BlockDevice* disk_ = nullptr;  // the first of them
  uint64_t size_ = 0;
  uint64_t unit_ = 4096;
  bool is_writable_ = false;
};

class Export {
 public:
  explicit Export(ExportSpec spec) : spec_(std::move(spec)) {}

  const ExportSpec& spec() const { return spec_; }
  // At the start of the server.
  Result<void> prepare();
  // For a client. `readonly`: the server was started so.
  Result<std::shared_ptr<OpenExport>> connect(bool readonly);
  // At the end of the server, when no client is left: what was written is durable when it returns.
  Result<void> finish();

 private:
  ExportSpec spec_;
  std::mutex lock_;
  std::shared_ptr<OpenExport> open_;
};

}  // namespace varve::nbd
