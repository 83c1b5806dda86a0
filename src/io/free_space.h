// How much space a file system has left for a file, and for whom it is not enough.
//
// Nothing is refused here that might have succeeded. So file systems that may store less than what is written
// (compression, deduplication), or whose figures come from elsewhere (network, FUSE), count as having room; and so does
// everything where the answer can't be had. Quotas are not looked at: the system says EDQUOT when the time comes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "io/file_device.h"

namespace varve {

struct FreeSpace {
  std::string mount_point;
  uint64_t file_system = 0;  // st_dev
  uint64_t available = 0;    // bytes, for this process: root may use what is reserved for it
};

// Of the file system that `path`, or the nearest of its directories that exist, lies on. Nothing where it can't be
// told, or does not bind.
std::optional<FreeSpace> free_space(const std::string& path);

// Blocks that a file has without data in them, in bytes: reserved ones (fallocate, XFS's speculation). Writes into them
// take no space.
uint64_t surplus_bytes(FileDevice& file);

// Adds up what several files need.
class SpaceNeeds {
 public:
  void add(const std::string& path, uint64_t bytes);
  // The same for a file that is there, which may have reserved blocks (surplus_bytes(): looks at all of its extents).
  void add(FileDevice& file, uint64_t bytes);
  bool enough() const;
  // kNoSpace: the file system, what is needed and what is there, and what can be done. Once.
  Result<void> check() const;

 private:
  struct Need {
    FreeSpace space;
    uint64_t bytes = 0;
  };
  std::map<uint64_t, Need> needs_;  // by file system
};

}  // namespace varve
