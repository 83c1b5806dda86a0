#include "base/permission_remedy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/fs.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <optional>

#include "base/paths.h"
#include "base/unique_fd.h"

namespace varve {

namespace {

template <typename Entry, typename Id>
std::string name_or_number(Id id, int (*look_up)(Id, Entry*, char*, size_t, Entry**), char* Entry::* name) {
  Entry entry{};
  Entry* found = nullptr;
  std::array<char, 4096> buffer{};
  if (look_up(id, &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) return found->*name;
  return std::to_string(id);
}

std::string user_name(uid_t id) {
  return name_or_number<passwd, uid_t>(id, ::getpwuid_r, &passwd::pw_name);
}

std::string group_name(gid_t id) {
  return name_or_number<group, gid_t>(id, ::getgrgid_r, &group::gr_name);
}

// "belongs to libvirt-qemu:kvm with mode 0600".
std::string ownership(const struct stat& status) {
  return fmt::format("belongs to {}:{} with mode {:04o}", user_name(status.st_uid), group_name(status.st_gid),
                     status.st_mode & 07777);
}

// Directories that lead to `path`, from the first on: the one that this process may not look into.
std::optional<std::string> closed_directory(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    std::string directory = path.substr(0, slash);
    if (::faccessat(AT_FDCWD, directory.c_str(), X_OK, AT_EACCESS) != 0 && errno == EACCES) return directory;
  }
  return std::nullopt;
}

// The AppArmor profile or SELinux domain that this process runs in; empty where it is not confined.
std::string confinement() {
  const UniqueFd fd(::open("/proc/self/attr/current", O_RDONLY | O_CLOEXEC));
  std::array<char, 256> buffer{};
  const ssize_t length = fd ? ::read(fd.get(), buffer.data(), buffer.size()) : -1;
  std::string label(buffer.data(), static_cast<size_t>(std::max<ssize_t>(length, 0)));
  while (!label.empty() && (label.back() == '\n' || label.back() == '\0')) label.pop_back();
  return label.starts_with("unconfined") ? "" : label;
}

std::string attribute_remedy(const std::string& path, unsigned attribute, char letter, const char* name) {
  if (!has_attribute(path, attribute)) return {};
  return fmt::format("{} has the attribute '{}'; `chattr -{} {}` takes it off", path, name, letter, path);
}

std::string ownership_remedy(const std::string& path, const struct stat& status, const char* what) {
  return fmt::format("{} {}, and this is user {}: {}; run the command as {}root", path, ownership(status),
                     user_name(::geteuid()), what,
                     status.st_uid == ::geteuid() || status.st_uid == 0 ? "" : user_name(status.st_uid) + " or as ");
}

}  // namespace

std::string permission_remedy(const std::string& any_path, int error) {
  if (any_path.empty()) return {};
  std::error_code unknown;
  const std::filesystem::path absolute = std::filesystem::absolute(any_path, unknown);
  if (unknown) return {};
  std::string path = std::filesystem::weakly_canonical(absolute, unknown).string();
  if (unknown) path = absolute.string();  // a directory on the way is closed
  struct stat above = {};
  struct stat file = {};
  if (const auto closed = closed_directory(path)) {
    if (::stat(closed->c_str(), &above) != 0) return {};
    return ownership_remedy(*closed, above, "it can't look into that directory");
  }
  const std::string directory = directory_of(path);
  const bool exists = ::stat(path.c_str(), &file) == 0;
  if (::stat(directory.c_str(), &above) != 0) return {};
  if (error == EROFS) {
    return fmt::format(
        "the file system mounted on {} is read-only: `mount -o remount,rw` makes it writable, and `dmesg` "
        "says why if an error made it so",
        mount_point_of(exists ? path : directory));
  }
  for (const std::string& at : {path, directory}) {
    if (auto remedy = attribute_remedy(at, FS_IMMUTABLE_FL, 'i', "immutable"); !remedy.empty()) return remedy;
    if (auto remedy = attribute_remedy(at, FS_APPEND_FL, 'a', "append only"); !remedy.empty()) return remedy;
  }
  const auto may = [](const std::string& at, int what) {
    return ::faccessat(AT_FDCWD, at.c_str(), what, AT_EACCESS) == 0;
  };
  if (::geteuid() != 0) {
    if (exists && !may(path, R_OK)) return ownership_remedy(path, file, "it can't read it");
    if (exists && !may(path, W_OK)) return ownership_remedy(path, file, "it can't write to it");
    if (!may(directory, W_OK)) return ownership_remedy(directory, above, "it can't change what is in that directory");
    if (exists && (above.st_mode & S_ISVTX) != 0 && file.st_uid != ::geteuid() && above.st_uid != ::geteuid())
      return ownership_remedy(path, file, "in a directory with the sticky bit only the owner replaces a file");
  }
  if (const std::string label = confinement(); !label.empty()) {
    return fmt::format(
        "this process is confined as '{}', which may not allow it: `journalctl -k | grep -i denied` shows "
        "what AppArmor or SELinux refused",
        label);
  }
  if (::geteuid() != 0) return {};
  return "not even root may do that there: a file system over the network that gives root no rights, or a container "
         "without the capability for it; run the command as the file's owner";
}

}  // namespace varve
