// nbdkit with the plugin that was built, on a Unix socket, for as long as the object lives.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {

class NbdServer {
 public:
  // `parameters` of the plugin; `options` of nbdkit.
  explicit NbdServer(const std::vector<std::string>& parameters, const std::vector<std::string>& options = {}) {
    std::vector<std::string> argv = {"nbdkit", "-f", "-U", socket()};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.emplace_back(VARVE_NBDKIT_PLUGIN);
    argv.insert(argv.end(), parameters.begin(), parameters.end());
    process_ = std::make_unique<BackgroundProcess>(argv);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!answers() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_TRUE(answers()) << "nbdkit does not listen";
  }

  std::string uri(const std::string& name = "") const { return "nbd+unix:///" + name + "?socket=" + socket(); }
  BackgroundProcess& process() { return *process_; }
  // Ends it as Ctrl-C does; its exit code.
  int stop() {
    ::kill(process_->pid(), SIGTERM);
    return process_->close_and_wait();
  }

 private:
  std::string socket() const { return directory_ / "socket"; }
  bool answers() const {
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, socket().c_str(), sizeof address.sun_path - 1);
    return ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }

  TempDir directory_;
  std::unique_ptr<BackgroundProcess> process_;
};

}  // namespace varve::test
