#include "libvirt/library.h"

#include "base/shared_library.h"

namespace varve::libvirt {

namespace {

Result<Library> find_all() {
  const SharedLibrary file = TRY(SharedLibrary::load("libvirt.so.0"));
  Library library;
#define VARVE_LIBVIRT_FIND(name) TRY(file.find(#name, library.name));
  VARVE_LIBVIRT_FUNCTIONS(VARVE_LIBVIRT_FIND)
#undef VARVE_LIBVIRT_FIND
  TRY(file.find("virConnectAuthPtrDefault", library.default_authentication));
  return library;
}

}  // namespace

Result<Library> load_library() {
  auto library = find_all();
  if (library) return library;
  return std::move(library).error().with_note(
      "install libvirt0 (Debian's name of it), or work on a directory: -c dir:ROOT");
}

}  // namespace varve::libvirt
