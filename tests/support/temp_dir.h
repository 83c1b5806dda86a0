// A fresh directory below $TMPDIR (default /tmp) that is removed, with everything in it, at the end of the test.
// In memory, where the machine has a place for that: for tests that wait for many flushes and have no use for them.
#pragma once

#include <string>

namespace varve::test {

class TempDir {
 public:
  enum Kind { kOnDisk, kInMemory };
  explicit TempDir(Kind kind = kOnDisk);
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();

  const std::string& path() const { return path_; }
  // A path in it.
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  // Makes or replaces a file in it; returns its path.
  std::string write(const std::string& name, const std::string& contents) const;

 private:
  std::string path_;
};

// A whole file; empty where there is none.
std::string read_whole_file(const std::string& path);

}  // namespace varve::test
