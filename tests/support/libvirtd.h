// A real libvirtd on a directory tree: ROOT/etc/libvirt and ROOT/var/lib are its /etc/libvirt and /var/lib, everything
// else that it writes goes to a directory of its own. It lives in namespaces of its own, so it never meets a libvirtd
// of the system, and ends with the object.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {

class Libvirtd {
 public:
  // Why there can be none here ("needs root", …); empty: there can.
  static std::string unavailable();

  // Starts it; a failure of the running test that shows its output if it does not answer.
  explicit Libvirtd(std::string root);
  Libvirtd(const Libvirtd&) = delete;
  Libvirtd& operator=(const Libvirtd&) = delete;
  ~Libvirtd();

  // virsh, connected to it. File arguments must be absolute.
  ProcessResult virsh(const std::vector<std::string>& arguments) const;
  // The same; a failure of the running test unless virsh ended with 0. Returns its standard output.
  std::string virsh_ok(const std::vector<std::string>& arguments) const;

  // Any program, where it sees that libvirtd and its files.
  ProcessResult run_there(std::vector<std::string> command) const;
  // What to run here, so that `command` runs there.
  std::vector<std::string> command_there(std::vector<std::string> command) const;
  // Moves the calling process there, for good. Only for a process with a single thread.
  bool enter() const;

  // Ends it, and every QEMU that it started. What it wrote stays.
  void stop();
  // Again on the same tree: libvirtd reads definitions and snapshots only when it starts.
  void restart();

 private:
  void start();

  std::string root_;
  TempDir scratch_;
  std::unique_ptr<BackgroundProcess> process_;
};

// Skips the running test, saying why.
#define REQUIRES_LIBVIRTD()                                                                                \
  do {                                                                                                     \
    if (const std::string why = ::varve::test::Libvirtd::unavailable(); !why.empty()) GTEST_SKIP() << why; \
  } while (false)

}  // namespace varve::test
