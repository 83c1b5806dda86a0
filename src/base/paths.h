// Questions about paths of this host.
#pragma once

#include <string>

namespace varve {

// Where the file system is mounted that an existing, absolute path lies on.
std::string mount_point_of(std::string path);

// The directory part of a path: "/" of "/a", "." of "a".
std::string directory_of(const std::string& path);

}  // namespace varve
