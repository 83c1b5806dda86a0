#include "image/create.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>

#include "base/checked.h"
#include "image/backing_name.h"
#include "image/raw_image.h"
#include "io/file_device.h"

namespace varve::image {

namespace {

bool exists(const std::string& path) {
  struct stat st = {};
  return ::lstat(path.c_str(), &st) == 0;
}

Result<void> create_file(const std::string& path, LockRequest lock,
                         const std::function<Result<void>(FileDevice&)>& fill) {
  const bool was_there = exists(path);
  auto file = TRY(FileDevice::create(path, lock));
  Result<void> filled = fill(*file);
  if (!filled && !was_there) ::unlink(path.c_str());
  return filled;
}

Result<void> fill_raw(FileDevice& file, uint64_t size) {
  if (!file.is_block_device()) {
    TRY(file.resize(align_up(size, kSectorSize)));
    // As QEMU does: where nothing at all is allocated, O_DIRECT readers can't find out what alignment they need.
    const std::array<std::byte, 4096> zeroes{};
    return file.write_at(0, std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), align_up(size, kSectorSize))));
  }
  const uint64_t available = TRY(file.size());
  if (available >= size) return {};
  Error error = make_error(ErrorKind::kNoSpace, file.name() + ": the device is smaller than the image");
  error.sys_errno = ENOSPC;
  return error;
}

}  // namespace

Result<void> create_raw(const std::string& path, uint64_t size) {
  return create_file(path, LockRequest::raw_writer(), [&](FileDevice& file) { return fill_raw(file, size); });
}

Result<void> create_qcow2(const std::string& path, const qcow2::CreateOptions& options) {
  return create_file(path, LockRequest::format_writer(), [&](FileDevice& file) -> Result<void> {
    if (!options.data_file) return qcow2::Image::create(file, options);
    // The data file first: an image that names one which is not there would be of no use.
    const std::string data_path = resolve_backing_name("", *options.data_file);
    TRY(refuse_protocol(data_path));
    return create_file(data_path, LockRequest::raw_writer(), [&](FileDevice& data) -> Result<void> {
      TRY(fill_raw(data, options.size));
      TRY(data.flush());  // the data file | the header that names it
      return qcow2::Image::create(file, options);
    });
  });
}

}  // namespace varve::image
