#include "store/file_change.h"

#include <fmt/format.h>

#include "base/atomic_file.h"

namespace varve {

namespace {

struct Split {
  std::string directory;
  std::string name;
};

Result<Split> split(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos || slash + 1 == path.size()) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is not an absolute path of a file", path));
  }
  return Split{path.substr(0, std::max<size_t>(slash, 1)), path.substr(slash + 1)};
}

}  // namespace

Result<void> apply(const Layout& layout, const FileChange& change) {
  const Split at = TRY(split(change.path));
  if (at.name == "." || at.name == "..") {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is not a path of a file", change.path));
  }
  if (change.contents) {
    const std::string directory = TRY(layout.make_directories(at.directory));
    return replace_file(directory + "/" + at.name, *change.contents,
                        {.mode = change.mode, .owner = layout.new_file_owner()});
  }
  auto directory = layout.resolve(at.directory);
  if (!directory) {
    if (directory.error().kind == ErrorKind::kNotFound) return {};
    return std::move(directory).error();
  }
  auto removed = remove_file_durably(*directory + "/" + at.name);
  if (!removed && removed.error().kind == ErrorKind::kNotFound) return {};
  return removed;
}

}  // namespace varve
