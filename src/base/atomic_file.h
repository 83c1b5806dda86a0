// Small files that are never seen half written: definitions, metadata, the journal.
//
// A file is replaced by writing its new contents beside it, making them durable, renaming them over it and making the
// directory durable. A crash at any moment leaves the old contents or the new, and at worst a temporary file beside
// them (is_temporary_file_name). When a function returns without error, what it did has reached the disk.
//
// Paths that are changed must be absolute (kInvalidArgument otherwise): nothing depends on the working directory. A
// symbolic link in the last component is refused, never followed and never replaced.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace varve {

// The whole file. kNotFound where there is none; kInvalidArgument for anything but a regular file, and for one of more
// than `max_bytes` bytes.
Result<std::string> read_file(const std::string& path, size_t max_bytes);

struct Owner {
  unsigned user = 0;
  unsigned group = 0;
};

// Makes the open file `fd`, which this process has just made, the owner's, if one is named. Where the system does not
// let it (no capability, an identity that the file system or the container does not know) the file stays this process's
// own: that is no reason to fail, and none to stop half-way.
void give_to(int fd, const std::optional<Owner>& owner);

struct ReplaceOptions {
  // The exact mode of a file that was not there before, whatever the umask. One that was there keeps its own.
  unsigned mode = 0600;
  // Of a file that was not there before: whose it is to be, if not this process's (give_to).
  std::optional<Owner> owner = std::nullopt;
};

// Creates or replaces `path`. Owner, group, mode, ACL and SELinux label of the file that was there are kept; where that
// is not possible, nothing is changed and the error says which. On failure the old contents still stand, with one
// exception: if only the directory's fsync failed, the new ones do, but a crash may bring the old ones back.
Result<void> replace_file(const std::string& path, std::string_view contents, const ReplaceOptions& options = {});

// Like replace_file for a path that must not exist yet (kAlreadyExists), even if somebody else creates it meanwhile.
Result<void> create_file(const std::string& path, std::string_view contents, const ReplaceOptions& options = {});

// kNotFound where there is none.
Result<void> remove_file_durably(const std::string& path);

// Renames a file, replacing what stands at `to`; both directories are made durable.
Result<void> rename_file_durably(const std::string& from, const std::string& to);

// Makes `path` and those of its parents that are missing, with `mode` less the umask. A directory that is there
// already is left as it is.
Result<void> make_directories(const std::string& path, unsigned mode = 0755,
                              const std::optional<Owner>& owner = std::nullopt);

// What was created in, renamed in or removed from the directory is durable afterwards.
Result<void> sync_directory(const std::string& path);

// Gives the open file `to` the owner, group, mode, ACL and SELinux label of the open file `from`. `path` is `to`'s name
// in messages. For files that take another's place, and for images that are stacked upon one.
Result<void> copy_ownership(int from, int to, const std::string& path);

// A name that replace_file or create_file gives to what is not finished. A crash can leave such a file; whoever lists
// a directory passes over it, and whoever holds the lock on what is in it may remove it.
bool is_temporary_file_name(std::string_view name);

}  // namespace varve
