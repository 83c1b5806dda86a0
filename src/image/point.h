// A point of an image, opened as a disk: the active state, or one of the snapshots inside of it, with everything below
// that shows through. What serves, extracts or looks into a snapshot begins here.
//
// The image is open, and QEMU's locks on it are held, for as long as the object lives. A snapshot of an image that
// somebody else writes to, such as a running virtual machine, is opened all the same: without a lock on that image, and
// with a look after every read whether the snapshot is still there (qcow2/point_watch.h, docs/locking.md). A read
// that came too late fails with kIo (ESTALE), and so do all that follow.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image/open.h"
#include "qcow2/point_watch.h"

namespace varve::image {

struct PointName {
  std::string path;
  Format format = Format::kQcow2;
  // The name of a snapshot (not its id); nothing: the active state.
  std::optional<std::string> snapshot = std::nullopt;
};

class Point {
 public:
  // With Access::kReadWrite, the active state for reading and writing. kNotFound where the image has no such snapshot,
  // with those that it has in the notes.
  static Result<std::unique_ptr<Point>> open(const PointName& name, Access access);

  // The guest's disk, backing files showing through. From any thread.
  BlockDevice& disk() const { return *layers_.front(); }
  uint64_t size() const { return size_; }
  // The layers one by one, top first: disk() and what is below it (visible_extents, ConvertSource).
  const std::vector<BlockDevice*>& layers() const { return layers_; }
  // Of reads and writes: what is smaller costs as much, or more.
  uint64_t unit() const { return unit_; }
  // Whether somebody else may be writing to the image.
  bool is_watched() const { return watch_ != nullptr; }

 private:
  Point() = default;
  Result<void> open_image_of(const PointName& name, Access access);
  Result<void> open_unlocked(const PointName& name);
  Result<void> show_snapshot(const PointName& name);

  // From the bottom up, as they need one another.
  OpenImage below_;  // of an image that is open without a lock: its backing chain
  OpenImage image_;
  std::shared_ptr<FileDevice> file_;     // likewise, the image's file
  std::shared_ptr<qcow2::Image> qcow2_;  // of an image with snapshots
  std::unique_ptr<qcow2::PointWatch> watch_;
  std::unique_ptr<BlockDevice> snapshot_;
  std::unique_ptr<BlockDevice> watched_;
  std::vector<BlockDevice*> layers_;
  uint64_t size_ = 0;
  uint64_t unit_ = 4096;
};

}  // namespace varve::image
