// What a file system has against files that are going to be made on it: names, sizes, and how much there is.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "io/free_space.h"
#include "operation/preflight.h"

namespace varve {

class FileSystemCheck {
 public:
  explicit FileSystemCheck(Preflight& preflight) : preflight_(preflight) {}

  // The directory is there. Of all files that are made: two may differ only where the file system tells them apart.
  void check_name(const std::string& path, const std::string& directory);
  // The space that a file of `size` bytes takes there, of which `data_bytes` are no holes. `shown`: what it is called.
  uint64_t check_size(const std::string& shown, uint64_t size, uint64_t data_bytes, const std::string& directory);
  void add(const std::string& directory, uint64_t bytes) { space_.add(directory, bytes); }
  // Space, where nothing else is in the way.
  void finish() {
    if (preflight_.ok()) preflight_.accept(space_.check());
  }

 private:
  Preflight& preflight_;
  SpaceNeeds space_;
  std::set<std::string> folded_;
};

}  // namespace varve
