#include "guestfs/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace varve::guestfs {

namespace {

constexpr const char* kFile = "libguestfs.so.0";

Error unusable() {
  const char* reason = ::dlerror();
  return make_error(ErrorKind::kUnsupported,
                    fmt::format("libguestfs, which reads guests' file systems, can't be used: {}",
                                reason == nullptr ? kFile : reason))
      .with_note(
          "`apt-get install libguestfs0` (Debian, Ubuntu) or `dnf install libguestfs` (Fedora) installs it; for "
          "XFS libguestfs-xfs, too")
      .with_note("without it: `varve snapshot serve` and `varve snapshot extract` give the disks as they were");
}

}  // namespace

Result<Library> load_library() {
  void* file = ::dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) return unusable();
  Library library;
#define VARVE_GUESTFS_FIND(name, returns, takes)                                            \
  library.name = reinterpret_cast<decltype(library.name)>(::dlsym(file, "guestfs_" #name)); \
  if (library.name == nullptr) return unusable();
  VARVE_GUESTFS_FUNCTIONS(VARVE_GUESTFS_FIND)
#undef VARVE_GUESTFS_FIND
  return library;
}

}  // namespace varve::guestfs
