// A file that a transfer makes on the receiving host: under a temporary name first, and given its own at the end.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "io/file_device.h"
#include "store/journal_record.h"
#include "store/layout.h"

namespace varve {

class CopiedFile {
 public:
  // Opens the file at `root_path` for writing; makes it, and the directories on the way, where there is none. A new one
  // gets owner, group, mode, ACL and label of `like` where that can be, or is this process's own, mode 0600.
  static Result<CopiedFile> open(const Layout& layout, const std::string& root_path, const FileDevice* like);

  // The same for a file that nobody has made yet: kAlreadyExists.
  static Result<CopiedFile> create(const Layout& layout, const std::string& root_path);

  FileDevice& file() { return *file_; }
  const std::shared_ptr<FileDevice>& device() const { return file_; }
  // Lets the qcow2 image in it stand on another backing file, of the format of the one before. Durable.
  Result<void> change_backing_name(const std::string& name);
  // Durable first.
  Result<FileStamp> stamp();

 private:
  explicit CopiedFile(std::shared_ptr<FileDevice> file) : file_(std::move(file)) {}
  std::shared_ptr<FileDevice> file_;
};

// What an export has in the place of the image: the same, but for the name of its backing file. `file` is only read,
// and outlives it.
Result<std::shared_ptr<BlockDevice>> with_backing_name(FileDevice& file, const std::string& name);

// That the backing file at the root path `backing` is what QEMU finds by a relative `name` that the image at the root
// path `image` records: the name is made of paths, and links may lie on the way. kRefused.
Result<void> check_backing_name(const Layout& layout, const std::string& image, const std::string& name,
                                const std::string& backing);

// Renames a file, by host paths; never onto another one (kAlreadyExists). Durable.
Result<void> rename_new(const std::string& old_path, const std::string& new_path);

}  // namespace varve
