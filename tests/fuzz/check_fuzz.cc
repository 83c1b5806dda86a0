#include "base/endian.h"
#include "fuzz/entry_points.h"
#include "fuzz/mutator.h"

namespace {

// A refcount block far behind the end makes a repair look at as many clusters as lie in between, which is right, and
// takes seconds under a sanitizer. The corpus has such images; the fuzzer is to spend its time on others.
bool has_far_refcount_block(std::span<const std::byte> bytes) {
  if (bytes.size() < 72) return false;
  const auto table = varve::load_be<uint64_t>(&bytes[48]);
  for (uint64_t at = table; at < bytes.size() && bytes.size() - at >= 8; at += 8)
    if (const auto block = varve::load_be<uint64_t>(&bytes[at]); block >> 24 != 0 && block >> 48 == 0) return true;
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  if (has_far_refcount_block(bytes)) return -1;
  varve::fuzz::check_image(bytes);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return varve::fuzz::mutate_image(data, size, max_size, seed);
}
