// What a file system can't hold, whatever space it has: drives that people carry around are often FAT.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace varve {

struct FileLimits {
  std::optional<uint64_t> max_file_bytes;  // nothing: as much as there is space, for all that anybody knows
  bool has_holes = true;                   // else a file takes all of its size
  bool has_strict_names = false;           // Windows' rules: no <>:"|?*\ and control characters, no difference between
                                           // small and capital letters
  std::string file_system;                 // "FAT", "exFAT", "NTFS"; empty: none of those
};

// Of the file system of an existing path. From what it was mounted as.
FileLimits file_limits(const std::string& path);

// Whether a name can stand in a directory with such rules.
bool is_strict_name(const std::string& name);

}  // namespace varve
