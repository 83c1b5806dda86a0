#include "host/choose_host.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "base/unique_fd.h"

namespace varve {

namespace {

constexpr std::string_view kDirectoryScheme = "dir:";

// https://libvirt.org/uri.html: DRIVER[+TRANSPORT]://…
bool is_libvirt_uri(const std::string& uri) {
  const size_t end = uri.find("://");
  if (end == std::string::npos) return false;
  const std::string driver = uri.substr(0, uri.find_first_of("+:"));
  constexpr std::array<std::string_view, 18> kDrivers = {
      "qemu", "test",   "xen",          "lxc",      "ch",           "bhyve", "esx",       "vpx",    "gsx",
      "vbox", "remote", "vmwareplayer", "vmwarews", "vmwarefusion", "vz",    "parallels", "openvz", "hyperv"};
  return std::ranges::find(kDrivers, driver) != kDrivers.end();
}

Result<HostChoice> from_uri(const std::string& uri, std::string reason) {
  if (uri.starts_with(kDirectoryScheme)) {
    std::string root = uri.substr(kDirectoryScheme.size());
    if (root.empty() || root.find('\0') != std::string::npos) {
      return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' names no directory", uri))
          .with_note("a host in a directory is written dir:ROOT, e.g. dir:/srv/vm");
    }
    while (root.size() > 1 && root.ends_with('/')) root.pop_back();
    return HostChoice{.kind = HostKind::kDirectory, .uri = uri, .root = root, .reason = std::move(reason)};
  }
  if (is_libvirt_uri(uri)) {
    return HostChoice{.kind = HostKind::kLibvirt, .uri = uri, .root = {}, .reason = std::move(reason)};
  }
  return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no host", uri))
      .with_note("hosts are written dir:ROOT, or as libvirt does: qemu:///system, qemu:///session, qemu+ssh://…");
}

bool accepts_connections(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return fd && ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

}  // namespace

std::optional<std::string> answering_libvirt_socket(const std::string& run_directory) {
  for (const char* name : {"libvirt-sock", "virtqemud-sock"}) {
    std::string path = fmt::format("{}/libvirt/{}", run_directory, name);
    if (accepts_connections(path)) return path;
  }
  return std::nullopt;
}

Result<HostChoice> choose_host(const HostQuery& query) {
  if (query.option) return from_uri(*query.option, "because -c says so");
  if (query.environment) return from_uri(*query.environment, "because $VARVE_URI says so");
  const std::string& run = query.is_root ? query.system_run : query.runtime_directory;
  if (!run.empty()) {
    if (const auto socket = answering_libvirt_socket(run)) {
      return from_uri(query.is_root ? "qemu:///system" : "qemu:///session",
                      fmt::format("because a libvirtd answers on {}", *socket));
    }
  }
  const std::string why = "because neither -c nor $VARVE_URI says otherwise and no libvirtd answers";
  if (query.is_root) return from_uri("dir:/", why);
  if (!query.data_home.starts_with('/')) {
    return make_error(ErrorKind::kInvalidArgument, "neither $XDG_DATA_HOME nor $HOME is set to an absolute path")
        .with_note("name the host with -c dir:ROOT");
  }
  return from_uri(fmt::format("dir:{}/varve", query.data_home), why);
}

}  // namespace varve
