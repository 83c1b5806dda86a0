#include <cstdint>

#include "fuzz/document_entry_points.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  varve::fuzz::snapshot_xml({reinterpret_cast<const char*>(data), size});
  return 0;
}
