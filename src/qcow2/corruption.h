// One way to say that bytes on disk contradict the format.
#pragma once

#include <string>

#include "base/result.h"

namespace varve::qcow2 {

inline Error corruption(const std::string& image, uint64_t offset, const std::string& what) {
  Error e = make_error(ErrorKind::kCorrupt, image + ": " + what);
  e.path = image;
  e.offset = offset;
  return e;
}

}  // namespace varve::qcow2
