#include "store/file_change.h"

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "base/paths.h"

namespace varve {

Result<void> apply(const Layout& layout, const FileChange& change) {
  const std::string name = change.path.substr(change.path.rfind('/') + 1);
  if (!change.path.starts_with('/') || name.empty() || name == "." || name == "..") {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is not an absolute path of a file", change.path));
  }
  if (change.contents) {
    const std::string directory = TRY(layout.make_directories(directory_of(change.path)));
    return replace_file(directory + "/" + name, *change.contents,
                        {.mode = change.mode, .owner = layout.new_file_owner()});
  }
  auto directory = layout.resolve(directory_of(change.path));
  if (!directory) {
    if (directory.error().kind == ErrorKind::kNotFound) return {};
    return std::move(directory).error();
  }
  auto removed = remove_file_durably(*directory + "/" + name);
  if (!removed && removed.error().kind == ErrorKind::kNotFound) return {};
  return removed;
}

}  // namespace varve
