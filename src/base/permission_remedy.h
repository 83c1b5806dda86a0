// Why the system did not let this process have a file, and what would help: the sentence that stands below
// "Permission denied".
#pragma once

#include <string>

namespace varve {

// For EACCES, EPERM or EROFS that the system has just given for `path`: looks at the file, at the
// directories that lead there, at the file system and at what confines the process. Empty where nothing is found that
// would explain it.
std::string permission_remedy(const std::string& path, int error);

}  // namespace varve
