#include "transfer/file_system_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/units.h"
#include "io/file_limits.h"

namespace varve {

namespace {

std::string folded(std::string path) {
  std::ranges::transform(path, path.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return path;
}

}  // namespace

void FileSystemCheck::check_name(const std::string& path, const std::string& directory) {
  const FileLimits limits = file_limits(directory);
  if (!limits.has_strict_names) return;
  const std::string name = std::filesystem::path(path).filename();
  if (!is_strict_name(name)) {
    preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("a file on the file system {} at {} can't be called "
                                                                  "'{}'",
                                                                  limits.file_system, directory, name))
                          .with_note("rename it, or take a drive with ext4, XFS or btrfs"));
  }
  if (!folded_.insert(folded(path)).second) {
    preflight_.refuse(make_error(ErrorKind::kRefused,
                                 fmt::format("on the file system {} at {} '{}' would be another file, too: it knows no "
                                             "difference between small and capital letters",
                                             limits.file_system, directory, name))
                          .with_note("rename one of them, or take a drive with ext4, XFS or btrfs"));
  }
}

uint64_t FileSystemCheck::check_size(const std::string& shown, uint64_t size, uint64_t data_bytes,
                                     const std::string& directory) {
  const FileLimits limits = file_limits(directory);
  if (limits.max_file_bytes && size > *limits.max_file_bytes) {
    preflight_.refuse(
        make_error(ErrorKind::kRefused, fmt::format("{} has {}, and the file system {} at {} holds files of less than "
                                                    "{} only",
                                                    shown, format_size(size), limits.file_system, directory,
                                                    format_size(*limits.max_file_bytes + 1)))
            .with_note("format the drive with ext4, XFS, btrfs or exFAT, or take another one"));
  }
  return limits.has_holes ? data_bytes : size;
}

}  // namespace varve
