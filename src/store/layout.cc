#include "store/layout.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/atomic_file.h"
#include "domain/names.h"

namespace varve {

namespace {

constexpr int kMaxLinks = 40;  // as many as the kernel follows

std::string file_name_of(std::string_view name) {
  CHECK(is_file_name(name));
  return std::string(name);
}

std::string joined(const std::string& directory, std::string_view name) {
  return directory == "/" ? "/" + std::string(name) : directory + "/" + std::string(name);
}

// The components of a path, the first one next. "." and empty ones are left out.
std::deque<std::string> components(std::string_view path) {
  std::deque<std::string> result;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view component = path.substr(0, slash);
    if (!component.empty() && component != ".") result.emplace_back(component);
    path = slash == std::string_view::npos ? std::string_view{} : path.substr(slash + 1);
  }
  return result;
}

Result<std::string> read_link(const std::string& path) {
  std::array<char, PATH_MAX> target{};
  const ssize_t size = ::readlink(path.c_str(), target.data(), target.size());
  if (size < 0) return system_error(errno, "reading the link " + path, path);
  return std::string(target.data(), static_cast<size_t>(size));
}

// How far a root path leads.
struct Walk {
  std::string host_path;            // what exists, free of links
  std::deque<std::string> missing;  // what does not, below it
  struct Link {
    std::string root_path;
    std::string target;
  };
  std::optional<Link> last_link;  // the last link that was followed
};

// Follows a root path as the kernel would after a chroot: an absolute link begins again at ROOT, ".." of ROOT is ROOT.
Result<Walk> walk(const std::string& root, std::string_view root_path) {
  if (!root_path.starts_with('/') || root_path.find('\0') != std::string_view::npos) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("'{}' is not an absolute path", root_path.substr(0, root_path.find('\0'))));
  }
  Walk at{root, components(root_path), std::nullopt};
  const auto as_seen_from_root = [&](const std::string& host_path) {
    return root == "/" ? host_path : host_path.substr(root.size());
  };
  int links = 0;
  while (!at.missing.empty()) {
    const std::string name = at.missing.front();
    if (name == "..") {
      if (at.host_path != root) at.host_path.erase(std::max<size_t>(at.host_path.rfind('/'), 1));
      at.missing.pop_front();
      continue;
    }
    const std::string next = joined(at.host_path, name);
    struct stat status{};
    if (::lstat(next.c_str(), &status) != 0) {
      if (errno != ENOENT) return system_error(errno, "looking for " + next, next);
      return at;
    }
    at.missing.pop_front();
    if (!S_ISLNK(status.st_mode)) {
      if (!at.missing.empty() && !S_ISDIR(status.st_mode)) return system_error(ENOTDIR, "looking into " + next, next);
      at.host_path = next;
      continue;
    }
    if (++links > kMaxLinks) return system_error(ELOOP, "following the links of " + next, next);
    const std::string target = TRY(read_link(next));
    at.last_link = Walk::Link{as_seen_from_root(next), target};
    std::deque<std::string> inserted = components(target);
    at.missing.insert(at.missing.begin(), inserted.begin(), inserted.end());
    if (target.starts_with('/')) at.host_path = root;
  }
  return at;
}

bool exists(const std::string& path) {
  return ::access(path.c_str(), F_OK) == 0;
}

std::string quoted(const std::string& path) {
  const bool plain =
      path.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-+=:,@%") ==
      std::string::npos;
  if (plain) return path;
  std::string out = "'";
  for (const char c : path) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// The command that brings something of this host into the tree, where it will be looked for.
std::string bring_in(const std::string& host_path, const std::string& destination) {
  const std::string directory = destination.substr(0, std::max<size_t>(destination.rfind('/'), 1));
  return fmt::format("`mkdir -p {} && cp -a --sparse=always {} {}` brings it in", quoted(directory), quoted(host_path),
                     quoted(destination));
}

}  // namespace

Result<Layout> Layout::open(const std::string& root) {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(root.c_str(), nullptr), &std::free);
  if (!real) return system_error(errno, "the host directory " + root + " cannot be used", root);
  struct stat status{};
  if (::stat(real.get(), &status) != 0) return system_error(errno, "the host directory " + root, root);
  if (!S_ISDIR(status.st_mode)) {
    return system_error(ENOTDIR, "the host directory " + root + " cannot be used", root);
  }
  std::optional<Owner> owner;
  if (::geteuid() == 0 && status.st_uid != 0) owner = Owner{status.st_uid, status.st_gid};
  return Layout(real.get(), owner);
}

std::string Layout::definition(std::string_view domain) {
  return definitions_directory() + "/" + file_name_of(domain) + ".xml";
}
std::string Layout::snapshots_directory(std::string_view domain) {
  return snapshots_directory() + "/" + file_name_of(domain);
}
std::string Layout::snapshot(std::string_view domain, std::string_view name) {
  return snapshots_directory(domain) + "/" + file_name_of(name) + ".xml";
}
std::string Layout::aside_directory(std::string_view domain) {
  return varve_directory() + "/aside/" + std::string(domain);
}
std::string Layout::increment_directory(std::string_view domain) {
  return fmt::format("/{}.increment", domain);
}
std::string Layout::lock_file(std::string_view domain) {
  return lock_directory() + "/" + file_name_of(domain);
}

void Layout::redirect(const std::string& root_path, const std::string& host_path) {
  CHECK(root_ == "/");
  redirects_.emplace_back(root_path, host_path);
}

// The longest directory that matches counts: snapshots are below a directory that may be elsewhere itself.
std::string Layout::redirected(std::string_view root_path) const {
  const std::pair<std::string, std::string>* longest = nullptr;
  for (const auto& redirect : redirects_) {
    const std::string& from = redirect.first;
    if (!root_path.starts_with(from) || (root_path.size() > from.size() && root_path[from.size()] != '/')) continue;
    if (longest == nullptr || from.size() > longest->first.size()) longest = &redirect;
  }
  if (longest == nullptr) return std::string(root_path);
  return longest->second + std::string(root_path.substr(longest->first.size()));
}

std::string Layout::shown(std::string_view root_path) const {
  if (!redirects_.empty()) return redirected(root_path);
  return root_ == "/" ? std::string(root_path) : root_ + std::string(root_path);
}

Result<std::string> Layout::resolve(std::string_view root_path) const {
  Walk found = TRY(walk(root_, redirected(root_path)));
  if (found.missing.empty()) return std::move(found.host_path);
  std::string destination = found.host_path;
  for (const std::string& component : found.missing) destination = joined(destination, component);
  Error error = system_error(ENOENT, shown(root_path) + " is not there", shown(root_path));
  if (found.last_link) {
    error.notes.push_back(
        fmt::format("the link {} leads to {}", shown(found.last_link->root_path), found.last_link->target));
  }
  // As seen from the host, rather than from ROOT, it may well be there.
  if (root_ != "/") {
    const std::string outside =
        found.last_link && found.last_link->target.starts_with('/') ? found.last_link->target : std::string(root_path);
    if (exists(outside)) {
      error.notes.push_back(
          fmt::format("{} is on this host, but outside {}: {}", outside, root_, bring_in(outside, destination)));
    }
  }
  return error;
}

Result<std::string> Layout::resolve_for_creation(std::string_view root_path) const {
  const Walk found = TRY(walk(root_, redirected(root_path)));
  if (found.missing.empty()) return found.host_path;
  if (found.missing.size() == 1 && found.missing.front() != "..") return joined(found.host_path, found.missing.front());
  const std::string directory = joined(found.host_path, found.missing.front());
  return system_error(ENOENT, fmt::format("{} cannot be made: its directory {}", shown(root_path), directory),
                      directory);
}

Result<std::string> Layout::nearest_existing(std::string_view root_path) const {
  return TRY(walk(root_, redirected(root_path))).host_path;
}

Result<std::string> Layout::make_directories(std::string_view root_path, unsigned mode) const {
  const Walk found = TRY(walk(root_, redirected(root_path)));
  std::string directory = found.host_path;
  for (const std::string& component : found.missing) {
    // The kernel looks a directory up before it leaves it again; so must this.
    if (component == "..") return system_error(ENOENT, "looking for " + shown(root_path), shown(root_path));
    directory = joined(directory, component);
  }
  TRY(varve::make_directories(directory, mode, new_file_owner_));
  return directory;
}

Result<std::string> Layout::to_root_path(const std::string& host_path) const {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(host_path.c_str(), nullptr), &std::free);
  if (!real) return system_error(errno, host_path + " cannot be used", host_path);
  const std::string path = real.get();
  if (root_ == "/") return path;
  if (path == root_) return std::string("/");
  if (path.starts_with(root_ + "/")) return path.substr(root_.size());
  Error error = make_error(ErrorKind::kRefused, fmt::format("{} is outside {}", host_path, root_));
  error.path = host_path;
  const std::string name = path.substr(path.rfind('/') + 1);
  error.notes.push_back(bring_in(path, shown(images_directory() + "/" + name)));
  return error;
}

}  // namespace varve
