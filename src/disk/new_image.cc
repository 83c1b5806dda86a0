#include "disk/new_image.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "io/file_device.h"
#include "io/memory_device.h"
#include "io/rehearsal_device.h"

namespace varve {

namespace {

// As libvirt makes volumes: their contents are the guest's business.
constexpr unsigned kMode = 0600;

}  // namespace

Result<void> NewImage::check_free(const Layout& layout) const {
  const std::string host_path = TRY(layout.resolve_for_creation(path));
  struct stat status{};
  if (::lstat(host_path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return system_error(errno, fmt::format("can't look at {}", host_path), host_path);
  }
  if (S_ISREG(status.st_mode) && status.st_size == 0) return {};
  return make_error(ErrorKind::kAlreadyExists, fmt::format("there is an image {} already", host_path));
}

Result<uint64_t> NewImage::new_bytes() const {
  if (format == "raw") return uint64_t{0};
  const auto device = TRY(RehearsalDevice::over(std::make_unique<MemoryDevice>("new", 0)));
  TRY(qcow2::Image::create(*device, options));
  return device->changes().most_new_bytes;
}

Result<void> NewImage::claim(const Layout& layout) const {
  const std::string host_path = TRY(layout.resolve_for_creation(path));
  const auto made = create_empty_file(host_path, kMode, layout.new_file_owner());
  if (made) return {};
  if (made.error().sys_errno == EEXIST) return check_free(layout);
  return system_error(made.error().sys_errno, fmt::format("can't create the image {}", host_path), host_path);
}

Result<void> NewImage::fill(const Layout& layout) const {
  const std::string host_path = TRY(layout.resolve(path));
  const auto file = TRY(FileDevice::open(host_path, Access::kReadWrite, LockRequest::format_writer()));
  if (TRY(file->size()) != 0) {  // not what was claimed any more
    return make_error(ErrorKind::kAlreadyExists, fmt::format("somebody else has written to {} meanwhile", host_path));
  }
  if (format == "raw") {
    TRY(file->resize(options.size));
  } else {
    TRY(qcow2::Image::create(*file, options));
  }
  TRY(file->sync_all());
  return sync_directory(directory_of(host_path));
}

void NewImage::unclaim(const Layout& layout) const {
  if (const auto host_path = layout.resolve(path)) ::unlink(host_path->c_str());
}

}  // namespace varve
