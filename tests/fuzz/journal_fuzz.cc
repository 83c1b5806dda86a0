#include <cstdint>

#include "fuzz/document_entry_points.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  varve::fuzz::journal(std::as_bytes(std::span(data, size)));
  return 0;
}
