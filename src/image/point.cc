#include "image/point.h"

#include <fmt/format.h>

#include <algorithm>

#include "image/watched_device.h"

namespace varve::image {
namespace {

// Another reader, who minds nobody. QEMU lets others have this while it writes; it shows in `lslocks`.
constexpr LockRequest kBesideAWriter = {kLockConsistentRead, 0};

constexpr int kTries = 20;

std::string names_of(const std::vector<qcow2::Snapshot>& snapshots) {
  constexpr size_t kShown = 10;
  std::string text;
  for (size_t i = 0; i < snapshots.size() && i < kShown; ++i) text += (i == 0 ? "" : ", ") + snapshots[i].name;
  if (snapshots.size() > kShown) text += fmt::format(" and {} more", snapshots.size() - kShown);
  return text.empty() ? "no snapshot" : text;
}

}  // namespace

Result<std::unique_ptr<Point>> Point::open(const PointName& name, Access access) {
  if (name.snapshot && name.format != Format::kQcow2)
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("'{}' is opened as a {} image, and only qcow2 images have snapshots inside",
                                  name.path, name_of(name.format)));
  for (int tries = kTries;; --tries) {
    std::unique_ptr<Point> point(new Point);
    Result<void> opened = point->open_image_of(name, access);
    if (opened && name.snapshot) opened = point->show_snapshot(name);
    if (!opened) {
      // Header and tables that somebody is writing just now make no sense for a moment.
      if (point->file_ && opened.error().kind == ErrorKind::kCorrupt && tries > 1) continue;
      return std::move(opened).error();
    }
    point->size_ = TRY(point->disk().size());
    return point;
  }
}

Result<void> Point::open_image_of(const PointName& name, Access access) {
  OpenFailure failure;
  const Use use = access == Access::kReadWrite ? Use::kWrite : Use::kRead;
  auto opened = open_image(name.path, {.format = name.format, .use = use}, &failure);
  if (!opened) {
    const bool in_use = opened.error().kind == ErrorKind::kInUse && failure.layer == 0;
    if (in_use && name.snapshot) return open_unlocked(name);
    return std::move(opened).error();
  }
  image_ = *std::move(opened);
  for (const auto& device : image_.devices()) layers_.push_back(device.get());
  if (image_.qcow2() == nullptr) return {};
  qcow2_ = {image_.device(), image_.qcow2()};
  if (access == Access::kReadWrite) unit_ = std::max<uint64_t>(unit_, qcow2_->header().subcluster_size());
  return {};
}

// Whoever writes to the image has its backing files open for reading: these are locked as always.
Result<void> Point::open_unlocked(const PointName& name) {
  file_ = TRY(FileDevice::open(name.path, Access::kReadOnly, kBesideAWriter));
  qcow2_ = TRY(qcow2::Image::open(file_, {}));
  layers_.push_back(qcow2_.get());
  if (!qcow2_->header().backing_file) return {};
  const Layer below = TRY(declared_backing(name.path, qcow2_->header()));
  auto opened = open_image(below.path, {.format = below.format, .use = Use::kRead});
  if (!opened) {
    return std::move(opened).error().context(fmt::format("'{}' can't be opened, for a file below it", name.path));
  }
  below_ = *std::move(opened);
  qcow2_->set_backing(below_.device());
  for (const auto& device : below_.devices()) layers_.push_back(device.get());
  return {};
}

Result<void> Point::show_snapshot(const PointName& name) {
  const auto& snapshots = qcow2_->snapshots();
  const auto index = qcow2::find_by_name(snapshots, *name.snapshot);
  if (!index) {
    return make_error(ErrorKind::kNotFound, fmt::format("'{}' holds no snapshot '{}'", name.path, *name.snapshot))
        .with_note(fmt::format("it holds {}", names_of(snapshots)));
  }
  snapshot_ = TRY(qcow2_->open_snapshot(*index));
  layers_.front() = snapshot_.get();
  if (!file_) return {};
  // After its L1 table has been read.
  watch_ = TRY(qcow2::PointWatch::begin(*file_, qcow2_->header(), snapshots[*index]));
  watched_ = std::make_unique<WatchedDevice>(*snapshot_, *watch_);
  layers_.front() = watched_.get();
  return {};
}

}  // namespace varve::image
