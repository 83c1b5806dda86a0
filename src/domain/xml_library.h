// The functions of libxml2 that are used here (https://gnome.pages.gitlab.gnome.org/libxml2/html/), which is loaded for
// the first document; for this module's .cc files. Its headers make some of the names macros for functions of other
// names.
#pragma once

#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <libxml/relaxng.h>
#include <libxml/xmlerror.h>

#include "base/result.h"

namespace varve::xml {

#define VARVE_XML_FUNCTIONS(X)           \
  X(__xmlStructuredError)                \
  X(__xmlStructuredErrorContext)         \
  X(xmlCreateMemoryParserCtxt)           \
  X(xmlCtxtUseOptions)                   \
  X(xmlDocDumpMemoryEnc)                 \
  X(xmlFree)                             \
  X(xmlFreeDoc)                          \
  X(xmlFreeParserCtxt)                   \
  X(xmlInitParser)                       \
  X(xmlParseDocument)                    \
  X(xmlReadMemory)                       \
  X(xmlRelaxNGFree)                      \
  X(xmlRelaxNGFreeParserCtxt)            \
  X(xmlRelaxNGFreeValidCtxt)             \
  X(xmlRelaxNGNewParserCtxt)             \
  X(xmlRelaxNGNewValidCtxt)              \
  X(xmlRelaxNGParse)                     \
  X(xmlRelaxNGSetParserStructuredErrors) \
  X(xmlRelaxNGSetValidStructuredErrors)  \
  X(xmlRelaxNGValidateDoc)               \
  X(xmlSetStructuredErrorFunc)           \
  X(xmlStopParser)

struct Library {
#define VARVE_XML_MEMBER(name) decltype(&::name) name = nullptr;
  VARVE_XML_FUNCTIONS(VARVE_XML_MEMBER)
#undef VARVE_XML_MEMBER
};

// Ready to be used. Calls from several threads are safe. kUnsupported where there is no libxml2, or one that lacks a
// function.
Result<const Library*> load_library();
// After load_library() has succeeded.
const Library& library();

}  // namespace varve::xml
