// Whether this process may make, replace or remove files of a host: asked before anything is touched.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "base/result.h"
#include "store/layout.h"

namespace varve {

enum class FileFate : uint8_t {
  kReplaced,  // or made
  kRemoved,
};

class WriteAccess {
 public:
  explicit WriteAccess(const Layout& layout) : layout_(layout) {}

  // For the file at a root path, which need not exist, nor need its directories. An error (kPermission) names what is
  // in the way and the remedy; for a directory it comes once, however many files are asked about. A file that is
  // replaced has to be one whose owner and group this process can give to its successor.
  Result<void> check(const std::string& root_path, FileFate fate = FileFate::kReplaced);

 private:
  const Layout& layout_;
  std::set<std::string> checked_;  // host paths of directories
};

}  // namespace varve
