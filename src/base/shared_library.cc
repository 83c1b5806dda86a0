#include "base/shared_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace varve {

namespace {

Error unusable(const std::string& file) {
  const char* reason = ::dlerror();
  return make_error(ErrorKind::kUnsupported, fmt::format("the library {} can't be used: {}", file,
                                                         reason == nullptr ? "no reason given" : reason));
}

}  // namespace

Result<SharedLibrary> SharedLibrary::load(const char* file) {
  void* handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return unusable(file);
  return SharedLibrary(handle, file);
}

Result<void*> SharedLibrary::address_of(const char* name) const {
  void* address = ::dlsym(handle_, name);
  if (address == nullptr) return unusable(file_);
  return address;
}

}  // namespace varve
