#include "base/atomic_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/paths.h"

namespace varve {
namespace {

constexpr auto kExfatMagic = 0x2011BAB0;  // EXFAT_SUPER_MAGIC, which older headers of the kernel lack

// Asked after fchmod() has failed (errno): whether that says nothing, since the file system has one mode for all of its
// files, as FAT has. Then whoever mounted it has said who may read them.
bool has_no_modes(int fd) {
  const int why = errno;
  struct statfs fs;
  const bool is_one = ::fstatfs(fd, &fs) == 0 &&
                      (fs.f_type == MSDOS_SUPER_MAGIC || fs.f_type == kExfatMagic || fs.f_type == FUSE_SUPER_MAGIC);
  errno = why;
  return is_one && (why == EPERM || why == ENOSYS || why == EOPNOTSUPP || why == EINVAL);
}

constexpr std::string_view kTemporaryPrefix = ".varve-";
constexpr std::string_view kTemporarySuffix = ".tmp";
constexpr size_t kTemporaryDigits = 16;

Error invalid(const std::string& message, const std::string& path) {
  Error e = make_error(ErrorKind::kInvalidArgument, message);
  e.path = path;
  return e;
}

// An open directory and the name of something in it: every later call is relative to that very directory, even if
// somebody renames it meanwhile.
struct Place {
  UniqueFd directory;
  std::string name;
};

Result<Place> find_place(const std::string& path, const char* doing, int access = O_RDONLY) {
  if (path.empty() || path[0] != '/') {
    return invalid(fmt::format("cannot {} '{}': the path is not absolute", doing, path), path);
  }
  const size_t slash = path.rfind('/');
  Place place;
  place.name = path.substr(slash + 1);
  if (place.name.empty() || place.name == "." || place.name == "..") {
    return invalid(fmt::format("cannot {} '{}': that is a directory", doing, path), path);
  }
  place.directory = UniqueFd(::open(directory_of(path).c_str(), access | O_DIRECTORY | O_CLOEXEC));
  if (!place.directory) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  return place;
}

Result<void> sync_open_directory(int directory, const char* doing, const std::string& path) {
  if (::fsync(directory) == 0) return {};
  // File systems that cannot sync a directory (some over the network) do it by themselves.
  if (errno == EINVAL || errno == ENOTSUP) return {};
  return system_error(errno, fmt::format("cannot {} '{}' durably", doing, path), path);
}

// What is there now: nothing, or the regular file, open. Anything else is refused.
Result<std::optional<UniqueFd>> open_existing(const Place& place, const char* doing, const std::string& path) {
  UniqueFd fd(::openat(place.directory.get(), place.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) return std::optional<UniqueFd>();
    if (errno == ELOOP) {
      return invalid(fmt::format("cannot {} '{}': it is a symbolic link", doing, path), path);
    }
    return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  }
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  if (!S_ISREG(st.st_mode)) return invalid(fmt::format("cannot {} '{}': it is not a regular file", doing, path), path);
  return std::optional<UniqueFd>(std::move(fd));
}

Result<std::string> unpredictable_name() {
  uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random) return system_error(errno, "cannot get random bytes");
  return fmt::format("{}{:016x}{}", kTemporaryPrefix, random, kTemporarySuffix);
}

// Makes the file or directory, which this process has just made in the open directory, the owner's.
void give_to(int fd, int directory, const std::optional<Owner>& owner) {
  struct stat above = {};
  if (!owner || ::fstat(directory, &above) != 0 || above.st_uid != owner->user) return;
  [[maybe_unused]] const int harmless = ::fchown(fd, owner->user, owner->group);
}

bool is_empty_directory(int fd) {
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), &::closedir);
  if (entries == nullptr) return false;
  while (const dirent* entry = ::readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") return false;
  }
  return true;
}

// As mkdir; what `errno` says otherwise.
int make_directory(const std::string& path, unsigned mode, const std::optional<Owner>& owner) {
  const UniqueFd above(::open(directory_of(path).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const std::string name = path.substr(path.rfind('/') + 1);
  if (!above || ::mkdirat(above.get(), name.c_str(), mode) != 0) return -1;
  if (!owner) return 0;
  // Whose directory it lies in may have put something else in its place already.
  const UniqueFd made(::openat(above.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (made && is_empty_directory(made.get())) give_to(made.get(), above.get(), owner);
  return 0;
}

// A temporary file in the place's directory; removed unless it was renamed.
class Temporary {
 public:
  explicit Temporary(const Place& place) : place_(place) {}
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    if (!name_.empty()) ::unlinkat(place_.directory.get(), name_.c_str(), 0);
  }

  Result<void> create(const char* doing, const std::string& path) {
    const std::string name = TRY(unpredictable_name());
    fd_ = UniqueFd(
        ::openat(place_.directory.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd_) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
    name_ = name;
    return {};
  }
  // Gives it its name, in place of what has it.
  Result<void> rename_over(const char* doing, const std::string& path) {
    const int directory = place_.directory.get();
    if (::renameat(directory, name_.c_str(), directory, place_.name.c_str()) != 0) {
      return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
    }
    name_.clear();
    return {};
  }
  // Gives it its name, which nobody may have. Where the file system cannot rename so (NFS), a second link and the
  // destructor's unlink do it.
  Result<void> rename_to_free_name(const char* doing, const std::string& path) {
    const int directory = place_.directory.get();
    if (::renameat2(directory, name_.c_str(), directory, place_.name.c_str(), RENAME_NOREPLACE) == 0) {
      name_.clear();
      return {};
    }
    if (errno == EINVAL && ::linkat(directory, name_.c_str(), directory, place_.name.c_str(), 0) == 0) return {};
    return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  }
  int fd() const { return fd_.get(); }

 private:
  const Place& place_;
  UniqueFd fd_;
  std::string name_;
};

enum class Existing { kReplace, kRefuse };

Result<void> write_beside_and_rename(const std::string& path, std::string_view contents, const ReplaceOptions& options,
                                     Existing existing) {
  const char* doing = existing == Existing::kReplace ? "write" : "create";
  const Place place = TRY(find_place(path, doing));
  const std::optional<UniqueFd> old = TRY(open_existing(place, doing, path));
  if (old && existing == Existing::kRefuse) {
    return system_error(EEXIST, fmt::format("cannot {} '{}'", doing, path), path);
  }
  Temporary temporary(place);
  TRY(temporary.create(doing, path));
  TRY(write_all(temporary.fd(), contents, doing, path));
  if (old) {
    TRY(copy_ownership(old->get(), temporary.fd(), path));
  } else {
    if (::fchmod(temporary.fd(), options.mode) != 0 && !has_no_modes(temporary.fd())) {
      return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
    }
    give_to(temporary.fd(), place.directory.get(), options.owner);
  }
  // Contents before name: a crash must not leave the name on contents that never came.
  if (::fsync(temporary.fd()) != 0) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  if (existing == Existing::kReplace) {
    TRY(temporary.rename_over(doing, path));
  } else {
    TRY(temporary.rename_to_free_name(doing, path));
  }
  return sync_open_directory(place.directory.get(), doing, path);
}

// An extended attribute's value; nothing where there is none or the file system has no such attributes.
Result<std::optional<std::vector<char>>> get_attribute(int fd, const char* name, const std::string& path) {
  std::vector<char> value(65536);  // the kernel's limit for any attribute
  const ssize_t n = ::fgetxattr(fd, name, value.data(), value.size());
  if (n < 0) {
    if (errno == ENODATA || errno == ENOTSUP) return std::optional<std::vector<char>>();
    return system_error(errno, fmt::format("cannot read the attribute {} that '{}' is to keep", name, path), path);
  }
  value.resize(static_cast<size_t>(n));
  return std::optional(std::move(value));
}

Result<void> copy_attribute(int from, int to, const char* name, const std::string& path) {
  const auto wanted = TRY(get_attribute(from, name, path));
  const auto present = TRY(get_attribute(to, name, path));
  if (wanted == present) return {};
  // `present` without `wanted`: inherited from the directory's default ACL.
  const int r = wanted ? ::fsetxattr(to, name, wanted->data(), wanted->size(), 0) : ::fremovexattr(to, name);
  if (r == 0) return {};
  return system_error(errno, fmt::format("cannot keep the attribute {} of '{}'", name, path), path);
}

}  // namespace

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return system_error(errno, fmt::format("cannot read '{}'", path), path);
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) return system_error(errno, fmt::format("cannot read '{}'", path), path);
  if (!S_ISREG(st.st_mode)) return invalid(fmt::format("cannot read '{}': it is not a regular file", path), path);

  // Not what stat promises, but what comes: files of /proc have size 0, and another one may grow meanwhile.
  std::string contents;
  char buffer[65536];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(errno, fmt::format("cannot read '{}'", path), path);
    if (n == 0) return contents;
    contents.append(buffer, static_cast<size_t>(n));
    if (contents.size() > max_bytes) {
      return invalid(fmt::format("cannot read '{}': it is larger than {} bytes", path, max_bytes), path);
    }
  }
}

Result<void> replace_file(const std::string& path, std::string_view contents, const ReplaceOptions& options) {
  return write_beside_and_rename(path, contents, options, Existing::kReplace);
}

Result<void> create_file(const std::string& path, std::string_view contents, const ReplaceOptions& options) {
  return write_beside_and_rename(path, contents, options, Existing::kRefuse);
}

Result<UniqueFd> create_empty_file(const std::string& path, unsigned mode, const std::optional<Owner>& owner) {
  const Place place = TRY(find_place(path, "create", O_PATH));
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  UniqueFd fd(::openat(place.directory.get(), place.name.c_str(), kFlags, mode));
  if (!fd) return system_error(errno, fmt::format("cannot create '{}'", path), path);
  give_to(fd.get(), place.directory.get(), owner);
  return fd;
}

Result<void> write_all(int fd, std::string_view contents, const char* doing, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t n = ::write(fd, contents.data(), contents.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return system_error(n == 0 ? ENOSPC : errno, fmt::format("cannot {} '{}'", doing, path), path);
    contents.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Result<bool> can_make_file_of(const std::string& directory, const Owner& owner) {
  const char* doing = "try to write to";
  const Place place = TRY(find_place(directory + "/any", doing));
  const UniqueFd nameless(::openat(place.directory.get(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
  Temporary temporary(place);
  if (!nameless) TRY(temporary.create(doing, directory));
  const int fd = nameless ? nameless.get() : temporary.fd();
  struct stat made = {};
  if (::fstat(fd, &made) != 0) return system_error(errno, fmt::format("cannot {} '{}'", doing, directory), directory);
  return (made.st_uid == owner.user && made.st_gid == owner.group) || ::fchown(fd, owner.user, owner.group) == 0;
}

Result<void> remove_file_durably(const std::string& path) {
  const Place place = TRY(find_place(path, "remove"));
  if (::unlinkat(place.directory.get(), place.name.c_str(), 0) != 0) {
    return system_error(errno, fmt::format("cannot remove '{}'", path), path);
  }
  return sync_open_directory(place.directory.get(), "remove", path);
}

Result<void> rename_file_durably(const std::string& from, const std::string& to) {
  const Place source = TRY(find_place(from, "rename"));
  const Place target = TRY(find_place(to, "rename to"));
  if (::renameat(source.directory.get(), source.name.c_str(), target.directory.get(), target.name.c_str()) != 0) {
    return system_error(errno, fmt::format("cannot rename '{}' to '{}'", from, to), from);
  }
  // The new name first: a crash between the two may show both, never neither.
  TRY(sync_open_directory(target.directory.get(), "rename to", to));
  return sync_open_directory(source.directory.get(), "rename", from);
}

Result<void> make_directories(const std::string& path, unsigned mode, const std::optional<Owner>& owner) {
  if (path.empty() || path[0] != '/') {
    return invalid(fmt::format("cannot make the directory '{}': the path is not absolute", path), path);
  }
  for (size_t end = path.find_first_not_of('/'); end != std::string::npos; end = path.find_first_not_of('/', end)) {
    const size_t start = end;
    end = std::min(path.find('/', start), path.size());
    const std::string directory = path.substr(0, end);
    if (make_directory(directory, mode, owner) == 0) {
      TRY(sync_directory(path.substr(0, start)));
      continue;
    }
    struct stat st = {};
    const int err = errno;
    if (err == EEXIST && ::stat(directory.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) continue;
    if (err == EEXIST) {
      return invalid(fmt::format("cannot make the directory '{}': '{}' is not a directory", path, directory), path);
    }
    // A parent that we may not write to, or that lies on a read-only file system, need not be made if it is there.
    if (::stat(directory.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) continue;
    return system_error(err, fmt::format("cannot make the directory '{}'", directory), directory);
  }
  return {};
}

Result<void> sync_directory(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return system_error(errno, fmt::format("cannot open the directory '{}'", path), path);
  return sync_open_directory(fd.get(), "change the directory", path);
}

Result<void> copy_ownership(int from, int to, const std::string& path) {
  struct stat wanted = {};
  struct stat present = {};
  if (::fstat(from, &wanted) != 0 || ::fstat(to, &present) != 0) {
    return system_error(errno, fmt::format("cannot examine '{}'", path), path);
  }
  if (wanted.st_uid != present.st_uid || wanted.st_gid != present.st_gid) {
    if (::fchown(to, wanted.st_uid, wanted.st_gid) != 0) {
      return system_error(
          errno, fmt::format("cannot keep the owner (user {}, group {}) of '{}'", wanted.st_uid, wanted.st_gid, path),
          path);
    }
  }
  // After the owner, whose change clears set-id bits; before the ACL, whose mask is the group's part of the mode.
  if (::fchmod(to, wanted.st_mode & 07777) != 0 && !has_no_modes(to)) {
    return system_error(errno, fmt::format("cannot keep the mode of '{}'", path), path);
  }
  // Raw attributes instead of libacl and libselinux: they are copied, not understood.
  TRY(copy_attribute(from, to, "system.posix_acl_access", path));
  return copy_attribute(from, to, "security.selinux", path);
}

bool is_temporary_file_name(std::string_view name) {
  if (name.size() != kTemporaryPrefix.size() + kTemporaryDigits + kTemporarySuffix.size()) return false;
  if (!name.starts_with(kTemporaryPrefix) || !name.ends_with(kTemporarySuffix)) return false;
  const std::string_view digits = name.substr(kTemporaryPrefix.size(), kTemporaryDigits);
  return digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace varve
