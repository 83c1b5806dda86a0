// An image that an operation makes: its name is claimed before anything else happens, and it is filled once the journal
// knows how to undo it.
#pragma once

#include <string>

#include "base/result.h"
#include "qcow2/image.h"
#include "store/layout.h"

namespace varve {

struct NewImage {
  std::string path;              // root path
  std::string format = "qcow2";  // or "raw"
  qcow2::CreateOptions options;  // of a raw image, the size counts

  // kAlreadyExists where there is anything of that name but an empty file: that is what an interrupted claim leaves.
  Result<void> check_free(const Layout& layout) const;
  // What its file takes when it is filled, in bytes.
  Result<uint64_t> new_bytes() const;
  // Makes an empty file.
  Result<void> claim(const Layout& layout) const;
  // Durable when it returns.
  Result<void> fill(const Layout& layout) const;
  void unclaim(const Layout& layout) const;
};

}  // namespace varve
