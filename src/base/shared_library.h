// Libraries of others that are loaded when something first needs them. A command takes half of the page faults to start
// without those that it has no use for: for `image` that is libcrypto, libarchive and libxml2, with what they load in
// turn (docs/decisions/013-libraries-when-needed.md).
//
// A module that uses such a library includes its headers, and has a struct with a pointer for each of its functions:
// named like them, so that the compiler checks every call.
#pragma once

#include <mutex>
#include <string>

#include "base/result.h"

namespace varve {

class SharedLibrary {
 public:
  // `file` is the name that the loader looks for ("libz.so.1"). kUnsupported, with the loader's reason, where it is not
  // there or can't be used. It stays loaded until the process ends.
  static Result<SharedLibrary> load(const char* file);

  // Sets `function`, or a pointer to a variable. kUnsupported where the library has nothing of that name.
  template <typename Symbol>
  Result<void> find(const char* name, Symbol*& symbol) const {
    symbol = reinterpret_cast<Symbol*>(TRY(address_of(name)));
    return {};
  }

 private:
  SharedLibrary(void* handle, const char* file) : handle_(handle), file_(file) {}
  Result<void*> address_of(const char* name) const;

  void* handle_;
  std::string file_;
};

// Such a struct, filled by `find` when it is first asked for. Calls from several threads are safe.
template <typename Functions>
class OnDemand {
 public:
  constexpr explicit OnDemand(Result<Functions> (*find)()) : find_(find) {}

  Result<const Functions*> load() {
    std::call_once(once_, [this] { found_ = new Result<Functions>(find_()); });
    if (!*found_) return found_->error();
    return &**found_;
  }
  // After load() has succeeded in this thread, or in one that this one has heard from since.
  const Functions& get() const {
    CHECK(found_ != nullptr && *found_);
    return **found_;
  }

 private:
  Result<Functions> (*find_)();
  std::once_flag once_;
  const Result<Functions>* found_ = nullptr;  // never deleted: what is destroyed at the end of the process may need it
};

}  // namespace varve
