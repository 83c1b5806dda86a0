// Runs a command and appends what it took to a file, one line: wall seconds, CPU seconds (user and system), peak
// resident memory in KiB, exit status. scripts/bench uses it for Varve and for qemu-img alike.
//
//   varve_measure RESULT_FILE MEMORY COMMAND ARGUMENT...
//
// MEMORY, in MiB: how much free memory is fetched beforehand, about what the command dirties.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

double seconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
}

// On a virtual machine, free memory may be the host's for the moment, and whoever touches it first waits for it. Here
// that is done before the clock starts.
void fetch_free_memory(size_t bytes) {
  const size_t free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t size = std::min(bytes, free / 4 * 3);
  if (size == 0) return;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return;
  (void)madvise(memory, size, MADV_HUGEPAGE);
  (void)madvise(memory, size, MADV_POPULATE_WRITE);
  munmap(memory, size);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: varve_measure RESULT_FILE MEMORY COMMAND ARGUMENT...\n");
    return 2;
  }
  fetch_free_memory(std::strtoul(argv[2], nullptr, 10) << 20);
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = fork();
  if (child < 0) {
    std::fprintf(stderr, "varve_measure: fork: %s\n", std::strerror(errno));
    return 1;
  }
  if (child == 0) {
    execvp(argv[3], argv + 3);
    std::fprintf(stderr, "varve_measure: %s: %s\n", argv[3], std::strerror(errno));
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  while (wait4(child, &status, 0, &usage) < 0) {
    if (errno != EINTR) {
      std::fprintf(stderr, "varve_measure: wait4: %s\n", std::strerror(errno));
      return 1;
    }
  }
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const int exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

  std::FILE* result = std::fopen(argv[1], "ae");
  if (result == nullptr) {
    std::fprintf(stderr, "varve_measure: %s: %s\n", argv[1], std::strerror(errno));
    return 1;
  }
  std::fprintf(result, "%.6f %.6f %ld %d\n", wall, seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss,
               exit_status);
  std::fclose(result);
  return exit_status;
}
