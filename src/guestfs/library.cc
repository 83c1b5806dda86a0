#include "guestfs/library.h"

#include "base/shared_library.h"

namespace varve::guestfs {

namespace {

Result<Library> find_all() {
  const SharedLibrary file = TRY(SharedLibrary::load("libguestfs.so.0"));
  Library library;
#define VARVE_GUESTFS_FIND(name, returns, takes) TRY(file.find("guestfs_" #name, library.name));
  VARVE_GUESTFS_FUNCTIONS(VARVE_GUESTFS_FIND)
#undef VARVE_GUESTFS_FIND
  return library;
}

}  // namespace

Result<Library> load_library() {
  auto library = find_all();
  if (library) return library;
  return std::move(library)
      .error()
      .context("libguestfs reads guests' file systems")
      .with_note(
          "`apt-get install libguestfs0` (Debian, Ubuntu) or `dnf install libguestfs` (Fedora) installs it; for "
          "XFS libguestfs-xfs, too")
      .with_note("without it: `varve snapshot serve` and `varve snapshot extract` give the disks as they were");
}

}  // namespace varve::guestfs
