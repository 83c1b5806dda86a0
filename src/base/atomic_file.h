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
#include "base/unique_fd.h"

namespace varve {

// The whole file. kNotFound where there is none; kInvalidArgument for anything but a regular file, and for one of more
// than `max_bytes` bytes.
Result<std::string> read_file(const std::string& path, size_t max_bytes);

struct Owner {
  unsigned user = 0;
  unsigned group = 0;
};

// Whoever makes files here may say whose they are to be. They become the owner's where the directory that they are made
// in is the owner's, too: what somebody put in that directory's place meanwhile gets nothing. Where the system does not
// let it (no capability, an identity that the file system or the container does not know) they stay this process's own:
// that is no reason to fail, and none to stop half-way.
struct ReplaceOptions {
  // The exact mode of a file that was not there before, whatever the umask. One that was there keeps its own.
  unsigned mode = 0600;
  // Of a file that was not there before: whose it is to be, if not this process's.
  std::optional<Owner> owner = std::nullopt;
};

// Creates or replaces `path`. Owner, group, mode, ACL and SELinux label of the file that was there are kept; where that
// is not possible, nothing is changed and the error says which. On failure the old contents still stand, with one
// exception: if only the directory's fsync failed, the new ones do, but a crash may bring the old ones back.
Result<void> replace_file(const std::string& path, std::string_view contents, const ReplaceOptions& options = {});

// Like replace_file for a path that must not exist yet (kAlreadyExists), even if somebody else creates it meanwhile.
Result<void> create_file(const std::string& path, std::string_view contents, const ReplaceOptions& options = {});

// Makes a file for reading and writing, with `mode` less the umask, where nothing is yet: kAlreadyExists (EEXIST) where
// there is something, a link among them. Not durable before its directory is.
Result<UniqueFd> create_empty_file(const std::string& path, unsigned mode, const std::optional<Owner>& owner);

// The whole of `contents`, from where the file's position is.
Result<void> write_all(int fd, std::string_view contents, const char* doing, const std::string& path);

// Whether a file that this process makes in the directory is the owner's, or can be given to them, as copy_ownership
// does. Asks the system, with a file that has no name, or a temporary one where the file system knows no such files.
// kPermission and others where none can be made.
Result<bool> can_make_file_of(const std::string& directory, const Owner& owner);

// kNotFound where there is none.
Result<void> remove_file_durably(const std::string& path);

// Renames a file, replacing what stands at `to`; both directories are made durable.
Result<void> rename_file_durably(const std::string& from, const std::string& to);

// Makes `path` and those of its parents that are missing, with `mode` less the umask, and the owner's. A directory that
// is there already is left as it is.
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
