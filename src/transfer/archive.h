// An export as one file: a tar archive (POSIX.1-2001, "pax", with GNU's sparse files, as GNU tar and bsdtar read them)
// of what an export's directory holds (manifest.h). libarchive writes and reads it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/block_device.h"
#include "transfer/file_copy.h"

namespace varve {

class ArchiveWriter {
 public:
  // Makes a file beside the host path `path`, with a name that nobody else has: part().
  static Result<ArchiveWriter> create(const std::string& path, int64_t now_sec);
  const std::string& part() const;
  ArchiveWriter(ArchiveWriter&&) noexcept;
  ~ArchiveWriter();

  // `name` is a path below the directory, without a leading slash.
  Result<void> add(const std::string& name, std::string_view contents);
  // The whole device; its holes take no space. The observer is called from this thread.
  Result<void> add(const std::string& name, BlockDevice& device, const CopyObserver& observer);
  // Durable when it returns.
  Result<void> finish();

 private:
  struct Archive;
  explicit ArchiveWriter(std::unique_ptr<Archive> archive);
  std::unique_ptr<Archive> archive_;
};

// Puts the files of an archive into `directory`, an empty one that nobody else has access to. kCorrupt: it is no such
// archive, it is cut short, or it has something else in it than files with plain paths, each once. `progress` counts
// bytes of the archive.
Result<void> extract_archive(const std::string& path, const std::string& directory,
                             const std::function<Result<void>(uint64_t done)>& progress);

}  // namespace varve
