#include "crypto/library.h"

#include <fmt/format.h>

#include <array>

#include "base/shared_library.h"

namespace varve::crypto {

namespace {

Result<Library> find_all() {
  const SharedLibrary file = TRY(SharedLibrary::load(VARVE_LIBCRYPTO));
  Library library;
#define VARVE_CRYPTO_FIND(name) TRY(file.find(#name, library.name));
  VARVE_CRYPTO_FUNCTIONS(VARVE_CRYPTO_FIND)
#undef VARVE_CRYPTO_FIND
  return library;
}

constinit OnDemand<Library> on_demand(find_all);

}  // namespace

Result<const Library*> load_library() {
  return on_demand.load();
}

const Library& library() {
  return on_demand.get();
}

Error library_error(const char* doing) {
  std::array<char, 256> reason{};
  library().ERR_error_string_n(library().ERR_get_error(), reason.data(), reason.size());
  library().ERR_clear_error();
  return make_error(ErrorKind::kInternal, fmt::format("{}: {}", doing, reason.data()));
}

}  // namespace varve::crypto
