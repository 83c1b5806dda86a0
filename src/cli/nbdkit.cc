#include "cli/nbdkit.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/interrupt.h"

namespace varve::cli {

namespace {

constexpr const char* kPluginFile = "nbdkit-varve-plugin.so";
constexpr int kFirstPassedFd = 3;  // sd_listen_fds(3)
constexpr int kBacklog = 64;

std::string plugin_file() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  std::vector<std::string> places;
  if (!error) {
    places.push_back(self.parent_path() / kPluginFile);
    places.push_back(self.parent_path().parent_path() / "lib/nbdkit/plugins" / kPluginFile);
  }
#ifdef VARVE_NBDKIT_PLUGINS
  places.push_back(std::string(VARVE_NBDKIT_PLUGINS) + "/" + kPluginFile);
#endif
  for (const std::string& place : places) {
    if (::access(place.c_str(), R_OK) == 0) return place;
  }
  return {};
}

// The environment of the server: ours, and which sockets it gets. The last word is LISTEN_PID=, which only the process
// itself knows.
std::vector<std::string> environment_for(size_t sockets) {
  std::vector<std::string> words;
  for (char** word = ::environ; *word != nullptr; ++word) {
    if (!std::string_view(*word).starts_with("LISTEN_")) words.emplace_back(*word);
  }
  words.push_back(fmt::format("LISTEN_FDS={}", sockets));
  words.push_back("LISTEN_PID=00000000000000000000");
  return words;
}

// In the new process: only what is allowed between fork and exec.
[[noreturn]] void become(const char* program, char* const* arguments, char* const* environment, char* pid_word,
                         const std::vector<UniqueFd>& fds) {
  std::array<int, 16> above = {};
  const size_t count = std::min(fds.size(), above.size());
  for (size_t i = 0; i < count; ++i) above[i] = ::fcntl(fds[i].get(), F_DUPFD_CLOEXEC, 64);
  for (size_t i = 0; i < count; ++i) ::dup2(above[i], kFirstPassedFd + static_cast<int>(i));
  char* digits = std::strchr(pid_word, '=') + 1;
  *fmt::format_to(digits, "{}", ::getpid()) = '\0';
  ::execve(program, arguments, environment);
  ::_exit(127);
}

}  // namespace

Result<NbdkitPrograms> find_nbdkit() {
  NbdkitPrograms programs{.nbdkit = program_in_path("nbdkit"), .plugin = plugin_file()};
  if (programs.nbdkit.empty()) {
    return make_error(ErrorKind::kUnsupported, "nbdkit, which serves the disks, is not installed")
        .with_note("`apt-get install nbdkit` (Debian, Ubuntu) or `dnf install nbdkit` (Fedora) installs it");
  }
  if (programs.plugin.empty()) {
    return make_error(ErrorKind::kUnsupported, fmt::format("Varve's plugin for nbdkit, {}, is not there", kPluginFile))
        .with_note("it is built beside `varve` where the package nbdkit-plugin-dev is installed");
  }
  return programs;
}

Result<PrivateDirectory> PrivateDirectory::make() {
  const char* base = std::getenv("TMPDIR");
  std::string path = std::string(base == nullptr || *base != '/' ? "/tmp" : base) + "/varve-serve-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return system_error(errno, fmt::format("cannot make '{}'", path), path);
  return PrivateDirectory(path);
}

PrivateDirectory::~PrivateDirectory() {
  if (path_.empty()) return;
  ::unlink(socket().c_str());
  ::unlink(pid_file().c_str());
  ::rmdir(path_.c_str());
}

Result<ListeningSockets> ListeningSockets::on_path(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is too long for a socket", path))
        .with_note(fmt::format("the system takes {} bytes at most", sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  ListeningSockets sockets;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return system_error(errno, "cannot make a socket");
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EADDRINUSE) return system_error(errno, fmt::format("cannot listen on '{}'", path), path);
    return make_error(ErrorKind::kAlreadyExists, fmt::format("'{}' is there already", path))
        .with_note("choose another path for --socket; if it is a socket that nobody serves any more, remove it");
  }
  sockets.path_ = path;
  if (::listen(fd.get(), kBacklog) != 0) return system_error(errno, fmt::format("cannot listen on '{}'", path), path);
  sockets.fds_.push_back(std::move(fd));
  return sockets;
}

Result<ListeningSockets> ListeningSockets::on_port(const std::string& address, unsigned port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found); code != 0) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("--address {} is not understood: {}", address, ::gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  ListeningSockets sockets;
  std::optional<Error> failure;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    UniqueFd fd(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int yes = 1;
    if (fd) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd && at->ai_family == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (fd && ::bind(fd.get(), at->ai_addr, at->ai_addrlen) == 0 && ::listen(fd.get(), kBacklog) == 0) {
      sockets.fds_.push_back(std::move(fd));
      continue;
    }
    if (errno == EADDRINUSE) {
      return make_error(ErrorKind::kInUse, fmt::format("port {} of {} is taken", port, address))
          .with_note("choose another one with --port; `ss -ltnp` shows who has which");
    }
    failure = system_error(errno, fmt::format("cannot listen on port {} of {}", port, address));
  }
  if (sockets.fds_.empty() && failure) return *std::move(failure);  // else: an address that this machine has not
  return sockets;
}

ListeningSockets::~ListeningSockets() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<Nbdkit> Nbdkit::start(const NbdkitPrograms& programs, const std::vector<std::string>& arguments,
                             ListeningSockets& sockets, const std::string& pid_file) {
  std::vector<std::string> words = {"nbdkit", "-f", "--exit-with-parent", "-P", pid_file};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> environment = environment_for(sockets.fds().size());
  const std::vector<char*> argv = pointers_to(words);
  const std::vector<char*> envp = pointers_to(environment);
  const pid_t pid = ::fork();
  if (pid < 0) return system_error(errno, "cannot start nbdkit");
  if (pid == 0) become(programs.nbdkit.c_str(), argv.data(), envp.data(), environment.back().data(), sockets.fds());
  sockets.close();
  Nbdkit server{ChildProcess(pid)};
  // It writes its number when all is ready.
  struct stat there = {};
  while (::stat(pid_file.c_str(), &there) != 0 || there.st_size == 0) {
    if (interrupted()) return make_error(ErrorKind::kInterrupted, "nothing was served");
    if (!server.process_.has_ended(10)) continue;
    server.process_.reap();
    return make_error(ErrorKind::kIo, "nbdkit does not start; what it said is above");
  }
  return server;
}

Result<void> Nbdkit::wait() {
  // A signal that comes between the question and the poll is seen after the next one.
  while (!process_.has_ended(200)) {
    if (!interrupted()) continue;
    process_.end();  // it waits for its clients, which may have no end in mind; nothing that they wrote is kept anyhow
    return {};
  }
  const int code = process_.reap();
  if (code == 0 || interrupted()) return {};
  return make_error(ErrorKind::kIo, fmt::format("nbdkit ended with exit code {}; what it said is above", code));
}

}  // namespace varve::cli
