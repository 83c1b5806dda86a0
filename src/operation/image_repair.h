// The repair of one image's metadata as a part of an operation: the image is open and locked from the planning on, so
// nobody uses it in between. The repair can be interrupted anywhere and done again (check/repair_plan.h).
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "check/tally.h"
#include "io/file_device.h"
#include "store/layout.h"

namespace varve {

class ImageRepair {
 public:
  // kInUse where somebody has the image open; kRefused where the repair would give something up
  // (inspect/safe_repair.h).
  static Result<ImageRepair> open(const Layout& layout, const std::string& root_path, check::Repair repair);

  const std::string& path() const { return path_; }  // root path
  std::string describe() const;
  FileDevice& file() const { return *file_; }
  uint64_t new_bytes() const { return new_bytes_; }  // that the file takes for it, at most
  // An error where anything is wrong with the image afterwards.
  Result<void> run();

 private:
  ImageRepair() = default;
  std::string path_;
  std::string shown_path_;
  check::Repair repair_ = check::Repair::kNone;
  uint64_t new_bytes_ = 0;
  std::unique_ptr<FileDevice> file_;
};

}  // namespace varve
