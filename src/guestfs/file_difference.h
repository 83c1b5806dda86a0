// Two directory trees compared as stat(2) sees them, directory by directory: memory is that of the largest one.
// Contents are not read: a file counts as changed when its kind, mode, owner, size, modification time or change time
// differs, or a link's target. The change time (ctime) moves with every write, and programs can't set it back. Of
// a directory only what is its own counts: kind, mode, owner.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "guestfs/guest_file.h"

namespace varve::guestfs {

struct GuestFileChange {
  std::string path;                 // "/etc/passwd"
  std::optional<GuestFile> before;  // nothing: the file was added
  std::optional<GuestFile> after;   // nothing: it was removed
};

// What is in a directory, in any order.
using ListDirectory = std::function<Result<std::vector<GuestFile>>(const std::string& path)>;

// The two are called from different threads, each from one at a time. `visit` gets changes directory by directory,
// sorted by name in each; of an added or removed directory everything in it as well. Its error ends the comparison.
Result<void> compare_trees(const ListDirectory& before, const ListDirectory& after,
                           const std::function<Result<void>(const GuestFileChange&)>& visit);

// What about it changed, in words: "size", "time", "mode", "owner", "kind", "target"; "attributes" where only the
// change time tells.
std::vector<std::string> changes_of(const GuestFile& before, const GuestFile& after);

}  // namespace varve::guestfs
