// One file as it is going to be: what the stores hand to the journal, and what apply() makes true.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "store/layout.h"

namespace varve {

struct FileChange {
  std::string path;  // a root path (layout.h), so that a journal still holds after its tree has moved
  std::optional<std::string> contents;  // nothing: the file is to be removed
  unsigned mode = 0600;  // of a file that did not exist; an existing one keeps owner, mode, ACL and label
  bool operator==(const FileChange&) const = default;
};

// Makes it so, durably: missing directories made, written beside, fsynced, renamed, directory fsynced. Idempotent:
// removing what is not there succeeds.
Result<void> apply(const Layout& layout, const FileChange& change);

}  // namespace varve
