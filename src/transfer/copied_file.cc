#include "transfer/copied_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "qcow2/image.h"
#include "store/journal.h"

namespace varve {

namespace {

// As libvirt makes volumes: their contents are the guest's business. libvirt gives them to QEMU's user when it starts
// the machine.
constexpr unsigned kMode = 0600;

}  // namespace

Result<CopiedFile> CopiedFile::open(const Layout& layout, const std::string& root_path, const FileDevice* like) {
  TRY(layout.make_directories(directory_of(root_path)));
  const std::string path = TRY(layout.resolve_for_creation(root_path));
  if (auto made = create_empty_file(path, kMode, layout.new_file_owner()); made) {
    // Where a file system has no owners, the file is as useful without.
    if (like != nullptr) (void)copy_ownership(like->fd(), made->get(), path).has_value();
    TRY(sync_directory(directory_of(path)));
  } else if (made.error().sys_errno != EEXIST) {
    return std::move(made).error();
  }
  return CopiedFile(TRY(FileDevice::open(path, Access::kReadWrite, LockRequest::raw_writer())));
}

Result<CopiedFile> CopiedFile::create(const Layout& layout, const std::string& root_path) {
  TRY(layout.make_directories(directory_of(root_path)));
  const std::string path = TRY(layout.resolve_for_creation(root_path));
  TRY(create_empty_file(path, kMode, layout.new_file_owner()));
  TRY(sync_directory(directory_of(path)));
  return CopiedFile(TRY(FileDevice::open(path, Access::kReadWrite, LockRequest::raw_writer())));
}

Result<void> CopiedFile::change_backing_name(const std::string& name) {
  const auto image = TRY(qcow2::Image::open(file_, {.writable = true}));
  const std::optional<std::string> format = image->header().backing_format;
  return image->change_backing_name(name, format);
}

Result<FileStamp> CopiedFile::stamp() {
  return sync_and_stamp(*file_);
}

Result<std::shared_ptr<BlockDevice>> with_backing_name(FileDevice& file, const std::string& name) {
  const std::shared_ptr<BlockDevice> device = TRY(file.rehearse());
  const auto image = TRY(qcow2::Image::open(device, {.writable = true}));
  const std::optional<std::string> format = image->header().backing_format;
  TRY(image->change_backing_name(name, format));
  return device;
}

Result<void> check_backing_name(const Layout& layout, const std::string& image, const std::string& name,
                                const std::string& backing) {
  if (name.starts_with('/')) return {};
  const std::string here = TRY(layout.resolve(directory_of(image)));
  const std::string meant = TRY(layout.resolve(directory_of(backing)));
  std::error_code failed;
  const auto found = std::filesystem::canonical(directory_of(here + "/" + name), failed);
  if (!failed && found == std::filesystem::path(meant)) return {};
  return make_error(ErrorKind::kRefused,
                    fmt::format("the backing file '{}' would not be found from {}: links lie on the "
                                "way",
                                name, layout.shown(image)))
      .with_note("`--images DIRECTORY` puts all images into one directory");
}

Result<void> rename_new(const std::string& old_path, const std::string& new_path) {
  if (::renameat2(AT_FDCWD, old_path.c_str(), AT_FDCWD, new_path.c_str(), RENAME_NOREPLACE) != 0) {
    // Some file systems (FUSE, network) don't know that flag; a name that comes at this very moment is lost there.
    if (errno != EINVAL && errno != ENOSYS) {
      return system_error(errno, fmt::format("can't give a copy its name {}", new_path), new_path);
    }
    if (::access(new_path.c_str(), F_OK) == 0) {
      return make_error(ErrorKind::kAlreadyExists, fmt::format("{} is there already", new_path));
    }
    return rename_file_durably(old_path, new_path);
  }
  return sync_directory(directory_of(new_path));
}

}  // namespace varve
