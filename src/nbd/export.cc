#include "nbd/export.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <utility>

namespace varve::nbd {
namespace {

// A file that is gone when it is closed.
Result<std::shared_ptr<FileDevice>> temporary_file(const std::string& directory) {
  std::string path = directory + "/varve-overlay-XXXXXX";
  const UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd) return system_error(errno, "cannot make a file for what is written in '" + directory + "'", directory);
  auto file = FileDevice::open(path, Access::kReadWrite, LockRequest::none());
  ::unlink(path.c_str());
  if (!file) return std::move(file).error();
  (*file)->ignore_flushes();
  return std::shared_ptr<FileDevice>(*std::move(file));
}

}  // namespace

Result<std::shared_ptr<OpenExport>> OpenExport::open(const ExportSpec& spec, Access access) {
  std::shared_ptr<OpenExport> result(new OpenExport);
  result->point_ = TRY(image::Point::open(spec.point, spec.overlay ? Access::kReadOnly : access));
  result->layers_ = result->point_->layers();
  result->size_ = result->point_->size();
  result->unit_ = result->point_->unit();
  result->is_writable_ = access == Access::kReadWrite;
  if (spec.overlay) TRY(result->lay_over(spec));
  result->disk_ = result->layers_.front();
  return result;
}

Result<void> OpenExport::lay_over(const ExportSpec& spec) {
  // With subclusters of 4 KiB, a small write copies next to nothing.
  const qcow2::CreateOptions options{.size = size_, .cluster_size = uint64_t{128} << 10, .extended_l2 = true};
  std::shared_ptr<FileDevice> file = TRY(temporary_file(*spec.overlay));
  TRY(qcow2::Image::create(*file, options));
  overlay_ = TRY(qcow2::Image::open(std::move(file), {.writable = true}));
  overlay_->set_backing({point_, &point_->disk()});
  layers_.insert(layers_.begin(), overlay_.get());
  is_writable_ = true;
  return {};
}

Result<void> Export::prepare() {
  const std::lock_guard guard(lock_);
  open_ = TRY(OpenExport::open(spec_, Access::kReadOnly));
  return {};
}

Result<std::shared_ptr<OpenExport>> Export::connect(bool readonly) {
  const std::lock_guard guard(lock_);
  if (open_ == nullptr) open_ = TRY(OpenExport::open(spec_, Access::kReadOnly));
  if (readonly || spec_.point.snapshot || open_->is_writable()) return open_;
  open_ = nullptr;  // its lock would be in the way
  open_ = TRY(OpenExport::open(spec_, Access::kReadWrite));
  return open_;
}

Result<void> Export::finish() {
  const std::lock_guard guard(lock_);
  const auto closing = std::exchange(open_, nullptr);
  return closing && closing->is_writable() ? closing->flush() : Result<void>();
}

}  // namespace varve::nbd
