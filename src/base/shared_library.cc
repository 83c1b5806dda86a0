#include "base/shared_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace varve {

namespace {

// The loader's reason begins with the library's name.
Error unusable(const char* file) {
  const char* reason = ::dlerror();
  return make_error(ErrorKind::kUnsupported,
                    fmt::format("a library can't be used: {}", reason == nullptr ? file : reason))
      .with_note(fmt::format("{} has to be installed, as new as the one that varve was built with", file));
}

}  // namespace

Result<SharedLibrary> SharedLibrary::load(const char* file) {
  void* handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return unusable(file);
  return SharedLibrary(handle, file);
}

Result<void*> SharedLibrary::address_of(const char* name) const {
  void* address = ::dlsym(handle_, name);
  if (address == nullptr) return unusable(file_.c_str());
  return address;
}

}  // namespace varve
