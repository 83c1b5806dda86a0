#include "support/temp_dir.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace varve::test {

TempDir::TempDir(Kind kind) {
  const char* base = std::getenv("TMPDIR");
  if (kind == kInMemory && ::access("/dev/shm", W_OK | X_OK) == 0) base = "/dev/shm";
  path_ = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/varve-test-XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr) {
    std::perror(path_.c_str());
    std::abort();
  }
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::write(const std::string& name, const std::string& contents) const {
  const std::string path = *this / name;
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

std::string read_whole_file(const std::string& path) {
  std::ostringstream contents;
  contents << std::ifstream(path, std::ios::binary).rdbuf();
  return contents.str();
}

}  // namespace varve::test
