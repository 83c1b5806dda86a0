#include "domain/xml_library.h"

#include "base/shared_library.h"

namespace varve::xml {

namespace {

Result<Library> find_all() {
  const SharedLibrary file = TRY(SharedLibrary::load(VARVE_LIBXML2));
  Library library;
#define VARVE_XML_FIND(name) TRY(file.find(#name, library.name));
  VARVE_XML_FUNCTIONS(VARVE_XML_FIND)
#undef VARVE_XML_FIND
  library.xmlInitParser();
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

}  // namespace varve::xml
