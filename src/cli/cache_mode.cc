#include "cli/cache_mode.h"

namespace varve::cli {

std::optional<CacheMode> parse_cache_mode(const std::string& word) {
  if (word == "none" || word == "off") return CacheMode{.direct = true};
  if (word == "writeback") return CacheMode{};
  if (word == "writethrough") return CacheMode{.write_through = true};
  if (word == "directsync") return CacheMode{.direct = true, .write_through = true};
  if (word == "unsafe") return CacheMode{.no_flush = true};
  return std::nullopt;
}

}  // namespace varve::cli
