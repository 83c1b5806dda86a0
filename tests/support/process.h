// Other programs, for tests: run one to its end and look at what it printed, or keep one running beside the test (a
// qemu-io that holds an image). No shell is involved. A program that cannot be started counts as exit code 127.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/unique_fd.h"

namespace varve::test {

struct ProcessResult {
  int exit_code = -1;  // 128 + signal when it was killed by one
  std::string out;
  std::string err;
};

struct RunOptions {
  std::string stdin_text;
  std::string working_directory;                                 // empty: the test's own
  std::vector<std::pair<std::string, std::string>> environment;  // added to, or replacing, the test's own
};

// argv[0] is looked up in PATH. QEMU's programs measure, for new LUKS keys, how fast the machine is, and at random fail
// to: nothing is done then, and they are asked again.
ProcessResult run(const std::vector<std::string>& argv, const RunOptions& options = {});

// run(), and a failure of the running test that shows what the program printed unless it ended with exit code 0.
// Returns its standard output.
std::string run_ok(const std::vector<std::string>& argv, const RunOptions& options = {});

// The program's full path, or nothing where it is not installed.
std::string find_program(std::string_view name);

// Skips the running test, saying why, where a program is missing.
#define REQUIRES_PROGRAM(name)                                          \
  do {                                                                  \
    if (::varve::test::find_program(name).empty()) {                    \
      GTEST_SKIP() << "needs " << (name) << ", which is not installed"; \
    }                                                                   \
  } while (false)

#define REQUIRES_ROOT()                                 \
  do {                                                  \
    if (::geteuid() != 0) GTEST_SKIP() << "needs root"; \
  } while (false)

// A running program; killed and reaped when it goes out of scope. Standard output and error come as one stream.
class BackgroundProcess {
 public:
  explicit BackgroundProcess(const std::vector<std::string>& argv, const RunOptions& options = {});
  BackgroundProcess(const BackgroundProcess&) = delete;
  BackgroundProcess& operator=(const BackgroundProcess&) = delete;
  ~BackgroundProcess();

  void write(std::string_view text);  // to its standard input
  // Waits until `text` stands in what it printed; false when it ended, or did not print it in time.
  bool wait_for(std::string_view text, std::chrono::milliseconds timeout = std::chrono::seconds(30));
  const std::string& output() const { return output_; }
  pid_t pid() const { return pid_; }
  int close_and_wait();  // closes its standard input; the exit code
  void kill();           // SIGKILL, and waits

 private:
  bool read_some(std::chrono::milliseconds timeout);
  int reap();

  pid_t pid_ = -1;
  UniqueFd stdin_;
  UniqueFd stdout_;
  std::string output_;
};

}  // namespace varve::test
