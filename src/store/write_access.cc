#include "store/write_access.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

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

// The nearest directory above a root path that exists; what is missing below it will be made.
Result<std::string> existing_directory(const Layout& layout, const std::string& root_path) {
  for (std::string directory = directory_of(root_path);; directory = directory_of(directory)) {
    auto found = layout.resolve(directory);
    if (found || found.error().kind != ErrorKind::kNotFound || directory == "/") return found;
  }
}

}  // namespace

Result<void> WriteAccess::check(const std::string& root_path, FileFate fate) {
  struct stat file = {};
  std::string path;
  if (const auto parent = layout_.resolve(directory_of(root_path))) {
    path = *parent + root_path.substr(root_path.rfind('/'));
  }
  const bool exists = !path.empty() && ::lstat(path.c_str(), &file) == 0;
  if (!exists && fate == FileFate::kRemoved) return {};
  const std::string directory = TRY(existing_directory(layout_, root_path));
  if (checked_.insert(directory).second && ::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    Error error = system_error(errno, fmt::format("cannot write to the directory {}", directory), directory);
    std::string remedy = permission_remedy(directory, error.sys_errno);
    if (!remedy.empty()) error.notes.push_back(std::move(remedy));
    return error;
  }
  if (!exists) return {};
  struct stat above = {};
  const bool is_ours = file.st_uid == ::geteuid();
  const bool is_sticky = ::stat(directory.c_str(), &above) == 0 && (above.st_mode & S_ISVTX) != 0;
  const bool may_remove = !is_sticky || is_ours || above.st_uid == ::geteuid() || has_capability(CAP_FOWNER);
  const bool may_keep_owner = (is_ours && is_in_group(file.st_gid)) || has_capability(CAP_CHOWN);
  if (may_remove && (fate == FileFate::kRemoved || may_keep_owner)) return {};
  Error error =
      system_error(EPERM, fmt::format("cannot {} {}", may_remove ? "keep the owner of" : "remove", path), path);
  error.notes.push_back(fmt::format("it belongs to user {} and group {}: run the command as root{}", file.st_uid,
                                    file.st_gid, ::geteuid() == 0 ? " with the capability for it (CAP_CHOWN)" : ""));
  return error;
}

}  // namespace varve
