#include "support/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>

namespace varve::test {
namespace {

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

Pipe make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::vector<std::string> merged_environment(const RunOptions& options) {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos) variables[std::string(text.substr(0, equals))] = text.substr(equals + 1);
  }
  for (const auto& [name, value] : options.environment) variables[name] = value;
  std::vector<std::string> merged;
  for (const auto& [name, value] : variables) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (const std::string& s : strings) result.push_back(const_cast<char*>(s.c_str()));
  result.push_back(nullptr);
  return result;
}

// The pid, or -1.
pid_t spawn(const std::vector<std::string>& argv, const RunOptions& options, int in, int out, int err) {
  // A program that stops reading must not end the test.
  ::signal(SIGPIPE, SIG_IGN);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in, 0);
  ::posix_spawn_file_actions_adddup2(&actions, out, 1);
  ::posix_spawn_file_actions_adddup2(&actions, err, 2);
  if (!options.working_directory.empty()) {
    ::posix_spawn_file_actions_addchdir_np(&actions, options.working_directory.c_str());
  }
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);

  const std::vector<std::string> environment = merged_environment(options);
  const std::string program = argv[0].find('/') == std::string::npos ? find_program(argv[0]) : argv[0];
  pid_t pid = -1;
  const int failure =
      ::posix_spawn(&pid, program.c_str(), &actions, &attributes, pointers(argv).data(), pointers(environment).data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  return failure == 0 ? pid : -1;
}

int wait_for_exit(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

ProcessResult run_once(const std::vector<std::string>& argv, const RunOptions& options) {
  Pipe in = make_pipe();
  Pipe out = make_pipe();
  Pipe err = make_pipe();
  ProcessResult result;
  const pid_t pid = spawn(argv, options, in.read.get(), out.write.get(), err.write.get());
  if (pid < 0) {
    result.exit_code = 127;
    result.err = "cannot start " + argv[0];
    return result;
  }
  in.read.reset();
  out.write.reset();
  err.write.reset();
  ::fcntl(in.write.get(), F_SETFL, O_NONBLOCK);

  // All three at once, so that neither side ever waits for a full pipe.
  std::string_view to_write = options.stdin_text;
  if (to_write.empty()) in.write.reset();
  while (out.read || err.read) {
    pollfd fds[3] = {{out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}, {in.write.get(), POLLOUT, 0}};
    if (::poll(fds, 3, -1) < 0) continue;
    const std::pair<UniqueFd*, std::string*> streams[] = {{&out.read, &result.out}, {&err.read, &result.err}};
    for (size_t i = 0; i < 2; ++i) {
      if (fds[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t n = ::read(streams[i].first->get(), buffer, sizeof buffer);
      if (n > 0) streams[i].second->append(buffer, static_cast<size_t>(n));
      if (n == 0 || (n < 0 && errno != EINTR)) streams[i].first->reset();
    }
    if (fds[2].revents != 0) {
      const ssize_t n = ::write(in.write.get(), to_write.data(), to_write.size());
      if (n > 0) to_write.remove_prefix(static_cast<size_t>(n));
      if (to_write.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) in.write.reset();
    }
  }
  result.exit_code = wait_for_exit(pid);
  return result;
}

}  // namespace

ProcessResult run(const std::vector<std::string>& argv, const RunOptions& options) {
  constexpr int kAttempts = 100;
  for (int attempt = 1;; ++attempt) {
    ProcessResult result = run_once(argv, options);
    if (attempt == kAttempts || result.err.find("Unable to get accurate CPU usage") == std::string::npos) return result;
  }
}

std::string run_ok(const std::vector<std::string>& argv, const RunOptions& options) {
  const ProcessResult result = run(argv, options);
  if (result.exit_code != 0) {
    std::string command;
    for (const std::string& word : argv) command += word + " ";
    ADD_FAILURE() << command << "ended with " << result.exit_code << "\n" << result.out << result.err;
  }
  return result.out;
}

std::string find_program(std::string_view name) {
  const char* path = std::getenv("PATH");
  std::istringstream directories(path != nullptr ? path : "/usr/bin:/bin");
  std::string directory;
  while (std::getline(directories, directory, ':')) {
    const std::string candidate = directory + "/" + std::string(name);
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  // Not in every user's PATH: mke2fs, losetup, libvirtd.
  for (const char* other : {"/usr/sbin/", "/sbin/"}) {
    const std::string candidate = other + std::string(name);
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return {};
}

BackgroundProcess::BackgroundProcess(const std::vector<std::string>& argv, const RunOptions& options) {
  Pipe in = make_pipe();
  Pipe out = make_pipe();
  pid_ = spawn(argv, options, in.read.get(), out.write.get(), out.write.get());
  stdin_ = std::move(in.write);
  stdout_ = std::move(out.read);
  if (pid_ < 0) output_ = "cannot start " + argv[0];
  if (!options.stdin_text.empty()) write(options.stdin_text);
}

BackgroundProcess::~BackgroundProcess() {
  kill();
}

void BackgroundProcess::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(stdin_.get(), text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

bool BackgroundProcess::read_some(std::chrono::milliseconds timeout) {
  pollfd fd = {stdout_.get(), POLLIN, 0};
  if (!stdout_ || ::poll(&fd, 1, static_cast<int>(timeout.count())) <= 0) return false;
  char buffer[4096];
  const ssize_t n = ::read(stdout_.get(), buffer, sizeof buffer);
  if (n <= 0) {
    stdout_.reset();
    return false;
  }
  output_.append(buffer, static_cast<size_t>(n));
  return true;
}

bool BackgroundProcess::wait_for(std::string_view text, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (output_.find(text) == std::string::npos) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0 || !read_some(left)) return output_.find(text) != std::string::npos;
  }
  return true;
}

int BackgroundProcess::reap() {
  if (pid_ < 0) return -1;
  return wait_for_exit(std::exchange(pid_, -1));
}

int BackgroundProcess::close_and_wait() {
  stdin_.reset();
  while (read_some(std::chrono::seconds(60))) {
  }
  return reap();
}

void BackgroundProcess::kill() {
  if (pid_ >= 0) ::kill(pid_, SIGKILL);
  reap();
}

}  // namespace varve::test
