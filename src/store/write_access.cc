#include "store/write_access.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "base/permission_remedy.h"

namespace varve {

namespace {

// In this process's own user namespace.
bool has_capability(unsigned capability) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (::syscall(SYS_capget, &header, sets.data()) != 0) return ::geteuid() == 0;
  return (sets[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) != 0;
}

bool is_in_group(gid_t group) {
  if (group == ::getegid()) return true;
  std::vector<gid_t> groups(static_cast<size_t>(std::max(::getgroups(0, nullptr), 0)));
  const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
  return count > 0 && std::find(groups.begin(), groups.begin() + count, group) != groups.begin() + count;
}

Error with_remedy(Error error, const std::string& path) {
  std::string remedy = permission_remedy(path, error.sys_errno);
  if (!remedy.empty()) error.notes.push_back(std::move(remedy));
  return error;
}

}  // namespace

Result<void> WriteAccess::check_directory(const std::string& directory) {
  if (!checked_.insert(directory).second) return {};
  if (::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return {};
  return with_remedy(system_error(errno, fmt::format("cannot write to the directory {}", directory), directory),
                     directory);
}

Result<void> WriteAccess::check_removal(const std::string& directory, const std::string& path,
                                        const struct stat& file) const {
  struct stat above = {};
  if (::stat(directory.c_str(), &above) != 0 || (above.st_mode & S_ISVTX) == 0) return {};
  if (file.st_uid == ::geteuid() || above.st_uid == ::geteuid() || has_capability(CAP_FOWNER)) return {};
  return with_remedy(system_error(EPERM, fmt::format("cannot remove {}", path), path), path);
}

// As replace_file() will find it.
Result<void> WriteAccess::check_replacement(const std::string& directory, const std::string& path,
                                            const struct stat& file) {
  if (!S_ISREG(file.st_mode)) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("cannot write {}: it is {}", path,
                                  S_ISLNK(file.st_mode) ? "a symbolic link" : "not a regular file"))
        .with_note("put the file itself in its place");
  }
  TRY(check_removal(directory, path, file));
  if (file.st_uid == ::geteuid() && is_in_group(file.st_gid)) return {};
  const auto [known, is_new] = may_give_.try_emplace({directory, file.st_uid, file.st_gid}, false);
  if (is_new) known->second = TRY(can_make_file_of(directory, {file.st_uid, file.st_gid}));
  if (known->second) return {};
  return system_error(EPERM, fmt::format("cannot keep the owner of {}", path), path)
      .with_note(fmt::format("it belongs to user {} and group {}: run the command as root{}", file.st_uid, file.st_gid,
                             ::geteuid() == 0 ? " with the capability for it (CAP_CHOWN), or as that user" : ""));
}

Result<void> WriteAccess::check(const std::string& root_path, FileFate fate) {
  const bool is_image = fate == FileFate::kImageMade || fate == FileFate::kImageRemoved;
  const bool is_removed = fate == FileFate::kDocumentRemoved || fate == FileFate::kImageRemoved;
  const auto named = layout_.resolve(is_image ? root_path : directory_of(root_path));
  if (!named) {
    if (named.error().kind != ErrorKind::kNotFound) return with_remedy(named.error(), named.error().path);
    return is_removed ? Result<void>() : check_directory(TRY(layout_.nearest_existing(directory_of(root_path))));
  }
  const std::string path = is_image ? *named : *named + root_path.substr(root_path.rfind('/'));
  const std::string directory = directory_of(path);
  struct stat file = {};
  if (::lstat(path.c_str(), &file) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return is_removed ? Result<void>() : check_directory(directory);
    return with_remedy(system_error(errno, fmt::format("cannot look at {}", path), path), path);
  }
  TRY(check_directory(directory));
  if (fate == FileFate::kDocumentReplaced) return check_replacement(directory, path, file);
  if (fate == FileFate::kImageMade && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0) {
    return with_remedy(system_error(errno, fmt::format("cannot write to {}", path), path), path);
  }
  return check_removal(directory, path, file);
}

}  // namespace varve
