#include "transfer/unpack_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

namespace varve {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = ".varve-unpack-";

// The directory, locked; nothing where somebody else has it, or where it is no directory of this user's, or not that of
// its name any more.
std::optional<UniqueFd> try_lock(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat opened = {};
  if (!fd || ::fstat(fd.get(), &opened) != 0 || opened.st_uid != ::geteuid()) return std::nullopt;
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return std::nullopt;
  struct stat named = {};
  if (::lstat(path.c_str(), &named) != 0 || named.st_ino != opened.st_ino || named.st_dev != opened.st_dev) {
    return std::nullopt;
  }
  return fd;
}

// Of imports that were killed. What can't be removed is left to the next.
void remove_leftovers(const std::string& parent) {
  std::error_code failed;
  for (fs::directory_iterator at(parent, failed), end; !failed && at != end; at.increment(failed)) {
    if (!at->path().filename().string().starts_with(kPrefix)) continue;
    const auto lock = try_lock(at->path());
    std::error_code ignored;
    if (lock) fs::remove_all(at->path(), ignored);
  }
}

}  // namespace

Result<UnpackDirectory> UnpackDirectory::make(const std::string& parent) {
  remove_leftovers(parent);
  constexpr int kAttempts = 10;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string path = fmt::format("{}/{}XXXXXX", parent, kPrefix);
    if (::mkdtemp(path.data()) == nullptr) {
      return system_error(errno, fmt::format("can't make a directory to unpack into at {}", path), path);
    }
    // Until it is locked, another import may take it for a leftover.
    if (auto lock = try_lock(path)) return UnpackDirectory(std::move(path), *std::move(lock));
  }
  return make_error(ErrorKind::kInUse,
                    fmt::format("directories to unpack into are removed from {} all the time", parent));
}

UnpackDirectory::UnpackDirectory(UnpackDirectory&& other) noexcept
    : path_(std::exchange(other.path_, {})), lock_(std::move(other.lock_)) {}

UnpackDirectory::~UnpackDirectory() {
  std::error_code failed;
  if (!path_.empty()) fs::remove_all(path_, failed);
}

}  // namespace varve
