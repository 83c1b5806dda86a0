// Questions about paths of this host.
#pragma once

#include <string>

namespace varve {

// Where the file system is mounted that an existing, absolute path without links lies on.
std::string mount_point_of(std::string path);

// The directory part of a path: "/" of "/a", "." of "a".
std::string directory_of(const std::string& path);

// Whether a file or directory has an attribute of `lsattr` (FS_IMMUTABLE_FL and the like). False where nobody can tell.
bool has_attribute(const std::string& path, unsigned attribute);

}  // namespace varve
