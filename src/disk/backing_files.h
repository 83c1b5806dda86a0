// The backing files of an image, as far down as they can be followed: which files somebody has to take along who takes
// the image. Reads headers only, and opens nothing that is not a file below ROOT.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/image_lock.h"
#include "qcow2/header.h"
#include "store/layout.h"

namespace varve {

struct BackingFile {
  std::string path;      // root path; as recorded where it is no path
  std::string recorded;  // what the image above says
  std::string format;    // empty: not recorded
  bool exists = false;
};

// Why a chain could not be followed to its end.
enum class ChainProblem : uint8_t { kNone, kNoPath, kCircle, kMissing, kNoFormat, kUnreadable };

struct BackingFiles {
  std::vector<BackingFile> files;  // nearest first
  ChainProblem kind = ChainProblem::kNone;
  std::string problem;     // the same in words; empty: none
  bool is_hidden = false;  // kUnreadable only now, or only for us: in use, forbidden
};

// `image_path` is the root path of the image that `header` belongs to. Headers below it are read under `lock`.
BackingFiles backing_files(const Layout& layout, const std::string& image_path, const qcow2::Header& header,
                           LockRequest lock = LockRequest::backing_reader());

}  // namespace varve
