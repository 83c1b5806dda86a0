#include "cli/source_option.h"

#include <algorithm>
#include <array>
#include <utility>

namespace varve::cli {

SourceOptions take_prefixed(SourceOptions& options, std::string_view prefix) {
  SourceOptions taken;
  SourceOptions others;
  for (SourceOption& option : options) {
    if (option.key.starts_with(prefix)) {
      option.key.erase(0, prefix.size());
      taken.push_back(std::move(option));
    } else {
      others.push_back(std::move(option));
    }
  }
  options = std::move(others);
  return taken;
}

std::optional<std::string> value_of(const SourceOptions& options, std::string_view key) {
  std::optional<std::string> value;
  for (const SourceOption& option : options)
    if (option.key == key) value = option.value;
  return value;
}

bool is_tuning_option(std::string_view key) {
  constexpr auto kKeys = std::to_array<std::string_view>({"aio",
                                                          "auto-read-only",
                                                          "cache.direct",
                                                          "cache.no-flush",
                                                          "cache.writeback",
                                                          "cache-size",
                                                          "cache-clean-interval",
                                                          "detect-zeroes",
                                                          "discard",
                                                          "l2-cache-entry-size",
                                                          "l2-cache-size",
                                                          "lazy-refcounts",
                                                          "locking",
                                                          "node-name",
                                                          "overlap-check",
                                                          "read-only",
                                                          "refcount-cache-size",
                                                          "overlap-check.template",
                                                          "pass-discard-other",
                                                          "pass-discard-request",
                                                          "pass-discard-snapshot",
                                                          "force-share"});
  return std::ranges::find(kKeys, key) != kKeys.end();
}

}  // namespace varve::cli
