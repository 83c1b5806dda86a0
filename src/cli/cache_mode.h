// -t and -T: QEMU's cache modes.
#pragma once

#include <optional>
#include <string>

namespace varve::cli {

struct CacheMode {
  bool direct = false;         // none, directsync: past the host's page cache
  bool write_through = false;  // writethrough, directsync: every write is durable when it returns
  bool no_flush = false;       // unsafe: nothing waits for the disk
};

// Nothing for a word that is none.
std::optional<CacheMode> parse_cache_mode(const std::string& word);

}  // namespace varve::cli
