// The backing files of an image, as far down as they can be followed: which files somebody has to take along who takes
// the image. Reads headers only, and opens nothing that is not a file below ROOT.
#pragma once

#include <string>
#include <vector>

#include "io/image_lock.h"
#include "qcow2/header.h"
#include "store/layout.h"

namespace varve {

struct BackingFile {
  std::string path;  // root path; as recorded where it is no path
  std::string format;
  bool exists = false;
};

struct BackingFiles {
  std::vector<BackingFile> files;  // nearest first
  std::string problem;             // why the chain could not be followed to its end; empty: it could
};

// `image_path` is the root path of the image that `header` belongs to. Headers below it are read under `lock`.
BackingFiles backing_files(const Layout& layout, const std::string& image_path, const qcow2::Header& header,
                           LockRequest lock = LockRequest::backing_reader());

}  // namespace varve
