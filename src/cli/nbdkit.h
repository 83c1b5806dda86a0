// Running nbdkit with our plugin: finding both, the sockets that it serves on, and the process itself.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "cli/child_process.h"

namespace varve::cli {

struct NbdkitPrograms {
  std::string nbdkit;
  std::string plugin;  // absolute
};
// The one in PATH, and the plugin that was built or installed with this command. kUnsupported, with what to install.
Result<NbdkitPrograms> find_nbdkit();

// A directory of this process's own, removed with what is known to be in it.
class PrivateDirectory {
 public:
  static Result<PrivateDirectory> make();
  PrivateDirectory(PrivateDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  PrivateDirectory& operator=(PrivateDirectory&&) = delete;
  ~PrivateDirectory();
  std::string socket() const { return path_ + "/socket"; }
  std::string pid_file() const { return path_ + "/pid"; }

 private:
  explicit PrivateDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Sockets that listen already when the server is not there yet: what is wrong with an address is said by whom it was
// given to, and a client that comes early waits.
class ListeningSockets {
 public:
  // kAlreadyExists where something has the name.
  static Result<ListeningSockets> on_path(const std::string& path);
  // kInUse where the port is taken. Every address that the name stands for.
  static Result<ListeningSockets> on_port(const std::string& address, unsigned port);
  ListeningSockets(ListeningSockets&& other) noexcept
      : fds_(std::move(other.fds_)), path_(std::exchange(other.path_, {})) {}
  ListeningSockets& operator=(ListeningSockets&&) = delete;
  ~ListeningSockets();  // removes a socket that has a name

  const std::vector<UniqueFd>& fds() const { return fds_; }
  void close() { fds_.clear(); }  // in this process; the server has them

 private:
  ListeningSockets() = default;
  std::vector<UniqueFd> fds_;
  std::string path_;
};

// A running nbdkit; ended when the object goes.
class Nbdkit {
 public:
  // Returns when it is ready for clients. kIo where it ended before; what it said is on standard error then. Its own
  // options -f, --exit-with-parent and -P stand before `arguments`.
  static Result<Nbdkit> start(const NbdkitPrograms& programs, const std::vector<std::string>& arguments,
                              ListeningSockets& sockets, const std::string& pid_file);
  // Until it ends, or the user asks to stop (cli/interrupt.h), which is no error.
  Result<void> wait();

 private:
  explicit Nbdkit(ChildProcess process) : process_(std::move(process)) {}
  ChildProcess process_;
};

}  // namespace varve::cli
