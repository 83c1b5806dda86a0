// What a file takes of its file system, in the file system's own words.
#pragma once

#include <cstdint>
#include <optional>

#include "io/file_device.h"

namespace varve {

struct FileUsage {
  uint64_t size_bytes = 0;               // up to its last byte, holes and all
  uint64_t occupied_bytes = 0;           // blocks that it has, shared ones among them
  std::optional<uint64_t> shared_bytes;  // of these, what other files have, too (reflinks); nothing: can't be told
};

// Nothing for what is no file: a device takes nothing of a file system. stat(2), and the FIEMAP ioctl
// (https://docs.kernel.org/filesystems/fiemap.html) for what is shared.
Result<std::optional<FileUsage>> file_usage(const FileDevice& file);

}  // namespace varve
