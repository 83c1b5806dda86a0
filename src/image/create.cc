#include "image/create.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

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

bool is_same_file(const std::string& one, const std::string& other) {
  struct stat a = {};
  struct stat b = {};
  return ::stat(one.c_str(), &a) == 0 && ::stat(other.c_str(), &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// "file:" says that a path follows, whatever it looks like.
std::string path_of(const std::string& name) {
  return resolve_backing_name("", name);
}

constexpr uint32_t kDefaultExtentSize = 1u << 20;

// Both are wishes: an empty file on another file system is none the worse.
void ask_file_system(FileDevice& file, const FileOptions& options) {
  if (options.nocow) {
    int flags = 0;
    if (::ioctl(file.fd(), FS_IOC_GETFLAGS, &flags) == 0) {
      flags |= FS_NOCOW_FL;
      (void)::ioctl(file.fd(), FS_IOC_SETFLAGS, &flags);
    }
  }
  struct fsxattr attributes = {};
  int result = ::ioctl(file.fd(), FS_IOC_FSGETXATTR, &attributes);
  if (result == 0) {
    attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
    attributes.fsx_extsize = static_cast<uint32_t>(options.extent_size_hint.value_or(kDefaultExtentSize));
    result = ::ioctl(file.fd(), FS_IOC_FSSETXATTR, &attributes);
  }
  if (result < 0 && options.warn && options.extent_size_hint.value_or(0) != 0)
    options.warn(std::string("Failed to set extent size hint: ") + std::strerror(errno));
}

Result<void> create_file(const std::string& path, LockRequest lock, const FileOptions& options,
                         const std::function<Result<void>(FileDevice&)>& fill) {
  if (options.extent_size_hint.value_or(0) > UINT32_MAX)
    return make_error(ErrorKind::kInvalidArgument, "Extent size hint is too large");
  const bool was_there = exists(path);
  auto file = TRY(FileDevice::create(path, lock));
  if (!file->is_block_device()) ask_file_system(*file, options);
  Result<void> filled = fill(*file);
  if (!filled && !was_there) ::unlink(path.c_str());
  return filled;
}

// A file gets this size; a device has to have it.
Result<void> make_room(FileDevice& file, uint64_t size) {
  if (!file.is_block_device()) return file.resize(size);
  if (TRY(file.size()) >= size) return {};
  Error error = make_error(ErrorKind::kNoSpace, file.name() + ": the device is smaller than the image");
  error.sys_errno = ENOSPC;
  return error;
}

Result<void> fill_raw(FileDevice& file, uint64_t size, NewSpace space) {
  if (!file.is_block_device()) {
    TRY(make_room(file, align_up(size, kSectorSize)));
    TRY(fill_holes(file, 0, align_up(size, kSectorSize), space));
    // As QEMU does: where nothing at all is allocated, O_DIRECT readers can't find out what alignment they need.
    const std::array<std::byte, 4096> zeroes{};
    return file.write_at(0, std::span(zeroes).first(std::min<uint64_t>(zeroes.size(), align_up(size, kSectorSize))));
  }
  return make_room(file, size);
}

}  // namespace

Result<void> create_raw(const std::string& name, uint64_t size, const FileOptions& file_options) {
  return create_file(path_of(name), LockRequest::raw_writer(), file_options,
                     [&](FileDevice& file) { return fill_raw(file, size, file_options.space); });
}

Result<void> create_luks(const std::string& name, uint64_t size, const crypto::LuksFormat& format,
                         const crypto::SecretBytes& passphrase, const FileOptions& file_options) {
  const auto end = checked_add(crypto::luks_header_area(format.cipher), size);
  if (!end || *end > INT64_MAX) return make_error(ErrorKind::kInvalidArgument, "The requested file size is too large");
  const std::vector<std::byte> header = TRY(crypto::make_luks_header(format, passphrase));
  return create_file(path_of(name), LockRequest::raw_writer(), file_options, [&](FileDevice& file) -> Result<void> {
    TRY(make_room(file, *end));
    if (!file.is_block_device()) TRY(fill_holes(file, 0, *end, file_options.space));
    // The header comes last: what is interrupted before is no LUKS image to anybody.
    const auto key_material = std::span(header).subspan(crypto::kLuksKeyAreaOffset);
    TRY(file.write_at(crypto::kLuksKeyAreaOffset, key_material));
    TRY(file.flush());  // the key material | the header that says it is there
    TRY(file.write_at(0, std::span(header).first(crypto::kLuksKeyAreaOffset)));
    return file.flush();
  });
}

Result<void> create_qcow2(const std::string& name, const qcow2::CreateOptions& options,
                          const FileOptions& file_options) {
  const std::string path = path_of(name);
  if (options.data_file && options.backing_file &&
      is_same_file(path_of(*options.data_file), resolve_backing_name(path, *options.backing_file))) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("'{}' is the backing file, and can't be the data file, too: it would be overwritten",
                                  *options.data_file));
  }
  return create_file(path, LockRequest::format_writer(), file_options, [&](FileDevice& file) -> Result<void> {
    if (!options.data_file) {
      TRY(qcow2::Image::create(file, options));
      return file.is_block_device() ? Result<void>() : fill_holes(file, 0, TRY(file.size()), file_options.space);
    }
    // The data file first: an image that names one which is not there would be of no use.
    const std::string data_path = path_of(*options.data_file);
    TRY(refuse_protocol(data_path));
    return create_file(data_path, LockRequest::raw_writer(), file_options, [&](FileDevice& data) -> Result<void> {
      TRY(fill_raw(data, options.size, file_options.space));
      TRY(data.flush());  // the data file | the header that names it
      return qcow2::Image::create(file, options);
    });
  });
}

}  // namespace varve::image
