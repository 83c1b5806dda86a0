#include "archive/library.h"

#include "base/shared_library.h"

namespace varve::archive {

namespace {

Result<Library> find_all() {
  const SharedLibrary file = TRY(SharedLibrary::load(VARVE_LIBARCHIVE));
  Library library;
#define VARVE_ARCHIVE_FIND(name) TRY(file.find(#name, library.name));
  VARVE_ARCHIVE_FUNCTIONS(VARVE_ARCHIVE_FIND)
#undef VARVE_ARCHIVE_FIND
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

}  // namespace varve::archive
