// Files and directories of a guest, copied to this host. What comes from a guest is a stranger's: names that lead out
// of the target are refused, nothing gets an owner, setuid bits are left out, and of devices and FIFOs nothing is made.
// (Sockets the guest's tar leaves out itself.) Modes are those of the guest, less the umask; times are kept; links stay
// what they are; zeroes become holes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "guestfs/guest_files.h"

namespace varve::guestfs {

// Asked and told from another thread while something is copied.
struct CopyWatch {
  std::function<bool()> stop;                    // kInterrupted where it says so
  std::function<void(uint64_t bytes)> progress;  // so many have arrived
};

struct CopiedOut {
  uint64_t files = 0;
  uint64_t bytes = 0;
  std::vector<std::string> left_out;  // paths below the directory, of what is neither file, directory nor link
};

// Hands a file's contents to `take`, in order, from another thread, until it says no, which is no error.
Result<void> pass_on(GuestFiles& guest, const std::string& path,
                     const std::function<bool(std::string_view bytes)>& take);

// A file to `target`, which must not be there (kAlreadyExists). Nothing is left of it after an error.
Result<CopiedOut> copy_file_out(GuestFiles& guest, const std::string& path, const std::string& target,
                                const CopyWatch& watch);

// Everything in a directory to the new directory `target`, likewise.
Result<CopiedOut> copy_directory_out(GuestFiles& guest, const std::string& path, const std::string& target,
                                     const CopyWatch& watch);

// Unpacks the tar archive that comes from `fd` into `directory`, which is empty and whose path has no links in it.
Result<CopiedOut> unpack_tree(int fd, const std::string& directory, const CopyWatch& watch);

}  // namespace varve::guestfs
