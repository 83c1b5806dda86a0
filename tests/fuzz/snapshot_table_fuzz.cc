#include <cstdint>

#include "fuzz/entry_points.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  varve::fuzz::snapshot_table(std::as_bytes(std::span(data, size)));
  return 0;
}
