#include "operation/preflight.h"

#include <fmt/format.h>

#include <algorithm>

namespace varve {

Result<void> Preflight::finish() && {
  if (errors_.empty()) return {};
  Error error = std::move(errors_.front());
  for (size_t i = 1; i < errors_.size(); ++i) {
    error.notes.push_back("also: " + errors_[i].message);
    for (std::string& note : errors_[i].notes) {
      if (std::ranges::find(error.notes, note) == error.notes.end()) error.notes.push_back(std::move(note));
    }
  }
  error.notes.emplace_back("nothing was changed");
  if (error.kind != ErrorKind::kInUse && error.kind != ErrorKind::kAlreadyExists) error.kind = ErrorKind::kRefused;
  return std::move(error).context(failure_);
}

std::string list_of(const std::vector<std::string>& names, size_t shown) {
  std::string list;
  for (size_t i = 0; i < names.size() && i < shown; ++i) list += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > shown) list += fmt::format(" and {} more", names.size() - shown);
  return list;
}

}  // namespace varve
