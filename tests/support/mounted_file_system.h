// A file system in memory (tmpfs, ramfs), mounted on a fresh directory and unmounted with the test. Needs root. A small
// tmpfs ("size=64k") is the full disk of tests.
#pragma once

#include <string>

#include "support/temp_dir.h"

namespace varve::test {

class MountedFileSystem {
 public:
  MountedFileSystem(const std::string& type, const std::string& options);
  MountedFileSystem(const MountedFileSystem&) = delete;
  MountedFileSystem& operator=(const MountedFileSystem&) = delete;
  ~MountedFileSystem();

  const std::string& path() const { return directory_.path(); }
  std::string operator/(const std::string& name) const { return directory_ / name; }

 private:
  TempDir directory_;
  bool mounted_ = false;
};

}  // namespace varve::test
