// Whether this process may make, replace or remove files of a host: asked before anything is touched.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "base/result.h"
#include "store/layout.h"

namespace varve {

enum class FileFate : uint8_t {
  kDocumentReplaced,  // or made (base/atomic_file.h)
  kDocumentRemoved,
  kImageMade,     // or filled, where there is an empty one; and removed, should what follows fail
  kImageRemoved,  // what a link leads to, not the link
};

class WriteAccess {
 public:
  explicit WriteAccess(const Layout& layout) : layout_(layout) {}

  // For the file at a root path, which need not exist, nor need its directories. An error (kPermission, mostly) names
  // what is in the way and the remedy; for a directory it comes once, however many files are asked about. A document
  // that is replaced has to be a file whose owner and group this process can give to its successor.
  Result<void> check(const std::string& root_path, FileFate fate);

 private:
  Result<void> check_directory(const std::string& directory);
  Result<void> check_removal(const std::string& directory, const std::string& path, const struct stat& file) const;
  Result<void> check_replacement(const std::string& directory, const std::string& path, const struct stat& file);

  const Layout& layout_;
  std::set<std::string> checked_;                                         // host paths of directories
  std::map<std::tuple<std::string, unsigned, unsigned>, bool> may_give_;  // in a directory, to a user and a group
};

}  // namespace varve
