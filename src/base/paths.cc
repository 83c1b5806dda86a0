#include "base/paths.h"

#include <sys/stat.h>

#include <utility>

namespace varve {

std::string mount_point_of(std::string path) {
  struct stat here = {};
  if (::stat(path.c_str(), &here) != 0) return path;
  while (path != "/" && path != ".") {
    struct stat above = {};
    std::string parent = directory_of(path);
    if (::stat(parent.c_str(), &above) != 0 || above.st_dev != here.st_dev) break;
    path = std::move(parent);
  }
  return path;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace varve
