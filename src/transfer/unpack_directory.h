// What an archive is unpacked into, in the directory where its images are going to be, so that they only have to be
// moved from there. It is gone with everything that is left in it when this object goes; what was left by an import
// that was killed is removed by the next one that makes such a directory there.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace varve {

class UnpackDirectory {
 public:
  // `parent`: a host path. Holds a flock(2) on the new directory, by which others see that it is in use.
  static Result<UnpackDirectory> make(const std::string& parent);
  UnpackDirectory(UnpackDirectory&& other) noexcept;
  UnpackDirectory& operator=(UnpackDirectory&&) = delete;
  ~UnpackDirectory();

  const std::string& path() const { return path_; }

 private:
  UnpackDirectory(std::string path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  std::string path_;  // empty: moved from
  UniqueFd lock_;
};

}  // namespace varve
