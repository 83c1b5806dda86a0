#include "transfer/incremental_import.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/atomic_file.h"
#include "transfer/copied_file.h"
#include "transfer/export_directory.h"
#include "transfer/file_copy.h"
#include "transfer/placement.h"

namespace varve {

namespace fs = std::filesystem;

Result<ImportDirectory> ImportDirectory::open(const std::string& parent, const std::string& key) {
  std::string path = fmt::format("{}/.varve-import-{}", parent, key);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return system_error(errno, fmt::format("can't make a directory to put the export together in, {}", path), path);
  }
  UniqueFd lock(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!lock) return system_error(errno, fmt::format("can't open {}", path), path);
  // Somebody else's could change between the comparison of checksums and the end.
  struct stat status;
  if (::fstat(lock.get(), &status) != 0 || status.st_uid != ::geteuid()) {
    return make_error(ErrorKind::kRefused, fmt::format("{} is somebody else's", path)).with_note("remove it first");
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return make_error(ErrorKind::kInUse, fmt::format("another import is at work in {}", path));
  }
  return ImportDirectory(std::move(path), std::move(lock));
}

uint64_t ImportDirectory::occupied_bytes() const {
  uint64_t bytes = 0;
  std::error_code failed;
  for (fs::recursive_directory_iterator at(path_, failed), end; at != end && !failed; at.increment(failed)) {
    struct stat status;
    if (::lstat(at->path().c_str(), &status) == 0) bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

Result<void> ImportDirectory::remove() const {
  std::error_code failed;
  fs::remove_all(path_, failed);
  if (failed) return system_error(failed.value(), fmt::format("can't remove {}", path_), path_);
  return {};
}

Result<uint64_t> data_bytes(const ExportChain& chain) {
  uint64_t bytes = 0;
  TRY(chain.check_files([&](const ManifestFile& file, ExportedFile& contents) -> Result<void> {
    for (const Extent& extent : TRY(contents.extents(0, file.size_bytes))) {
      if (extent.kind == ExtentKind::kData) bytes += extent.length;
    }
    return {};
  }));
  return bytes;
}

Result<void> put_together(const ExportChain& chain, const std::string& directory, const Watch& watch) {
  const Layout layout = TRY(Layout::open(directory));
  uint64_t total = 0;
  for (const ManifestFile& file : chain.manifest().files) total += file.size_bytes;
  uint64_t before = 0;
  for (const ManifestFile& file : chain.manifest().files) {
    if (layout.resolve(file.path)) {
      before += file.size_bytes;
      continue;
    }
    const auto contents = TRY(chain.open_file(file.path));
    CopiedFile copied = TRY(CopiedFile::open(layout, part_path(file.path), nullptr));
    TRY(copied.file().resize(0));
    TRY(copy_device(*contents, copied.file(),
                    {.bytes = {}, .zeroes = {}, .progress = [&](uint64_t done) -> Result<void> {
                       if (watch.progress) watch.progress(before + done, total);
                       if (!watch.cancelled || !watch.cancelled()) return {};
                       return make_error(ErrorKind::kInterrupted, "it was stopped");
                     }}));
    TRY(rename_new(TRY(layout.resolve(part_path(file.path))), TRY(layout.resolve_for_creation(file.path))));
    before += file.size_bytes;
  }
  return save_manifest(layout, whole(chain.manifest()));
}

}  // namespace varve
