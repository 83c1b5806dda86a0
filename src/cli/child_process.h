// A program that this command runs beside itself, and ends when it is done.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace varve::cli {

// The first one of this name in PATH; empty: there is none.
std::string program_in_path(const std::string& name);

// For execve(): the words, and a null pointer. Valid as long as `words` is.
std::vector<char*> pointers_to(std::vector<std::string>& words);

class ChildProcess {
 public:
  // `words` with argv[0]. It gets SIGTERM when this process ends in whichever way.
  static Result<ChildProcess> start(const std::string& program, std::vector<std::string> words);
  // Of a process that was forked.
  explicit ChildProcess(pid_t pid);
  ChildProcess(ChildProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)), pidfd_(std::move(other.pidfd_)) {}
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess() { end(); }

  // Waits so long for it.
  bool has_ended(int milliseconds) const;
  // Its exit code, or 128 and the signal's number; waits for it.
  int reap();
  // SIGTERM, and SIGKILL where it has not ended by then.
  void end(std::chrono::milliseconds patience = std::chrono::seconds(1));

 private:
  pid_t pid_ = -1;
  UniqueFd pidfd_;
};

}  // namespace varve::cli
