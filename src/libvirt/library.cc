#include "libvirt/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace varve::libvirt {

namespace {

constexpr const char* kFile = "libvirt.so.0";

Error unusable() {
  const char* reason = ::dlerror();
  return make_error(ErrorKind::kUnsupported,
                    fmt::format("libvirt's library can't be used: {}", reason == nullptr ? kFile : reason))
      .with_note("install libvirt0 (Debian's name of it), or work on a directory: -c dir:ROOT");
}

}  // namespace

Result<Library> load_library() {
  void* file = ::dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) return unusable();
  Library library;
#define VARVE_LIBVIRT_FIND(name)                                                 \
  library.name = reinterpret_cast<decltype(library.name)>(::dlsym(file, #name)); \
  if (library.name == nullptr) return unusable();
  VARVE_LIBVIRT_FUNCTIONS(VARVE_LIBVIRT_FIND)
#undef VARVE_LIBVIRT_FIND
  library.default_authentication =
      reinterpret_cast<decltype(library.default_authentication)>(::dlsym(file, "virConnectAuthPtrDefault"));
  if (library.default_authentication == nullptr) return unusable();
  return library;
}

}  // namespace varve::libvirt
