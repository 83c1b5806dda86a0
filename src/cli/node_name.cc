#include "cli/node_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <ranges>

#include "cli/qemu_json.h"

namespace varve::cli {

namespace {

// Key and value, the latter as JSON.
using Members = std::vector<std::pair<std::string, std::string>>;

// QEMU prints the members of a name in the order of a hash table of 512 places, with the hash function of gdbm as the
// Linux module tools have it.
uint32_t place_of(const std::string& key) {
  auto hash = static_cast<uint32_t>(key.size() * 0x238f13af);
  uint32_t shift = 0;
  for (const char c : key) {
    hash += uint32_t{static_cast<unsigned char>(c)} << shift;
    shift = (shift + 5) % 24;
  }
  return (hash * 1103515243 + 12345) % 512;
}

std::string object(const Members& members) {
  std::vector<std::pair<uint32_t, int64_t>> order;  // in one place, what came last is first
  for (size_t i = 0; i < members.size(); ++i) order.emplace_back(place_of(members[i].first), -static_cast<int64_t>(i));
  std::ranges::sort(order);
  std::string text;
  for (const int64_t index : order | std::views::values) {
    const auto& [key, value] = members[static_cast<size_t>(-index)];
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", qemu_json_string(key), value);
  }
  return "{" + text + "}";
}

void add(Members& members, const SourceOption& option) {
  const auto same = std::ranges::find(members, option.key, &Members::value_type::first);
  if (same != members.end())
    same->second = option.json;
  else
    members.emplace_back(option.key, option.json);
}

bool makes_a_difference_to_debug(const std::string& key) {
  constexpr auto kKeys = std::to_array<std::string_view>(
      {"config", "align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"});
  return std::ranges::find(kKeys, key) != kKeys.end() || key.starts_with("inject-error.") ||
         key.starts_with("set-state.");
}

}  // namespace

NodeName file_node(const std::string& path) {
  return {path, object({{"driver", "\"file\""}, {"filename", qemu_json_string(path)}})};
}

NodeName null_node(const std::string& driver, const SourceOptions& options) {
  Members members = {{"driver", qemu_json_string(driver)}};
  for (const SourceOption& option : options)
    if (option.key == "size" || option.key == "read-zeroes") add(members, option);
  return {std::nullopt, object(members)};
}

NodeName format_node(const std::string& format, const NodeName& file, const SourceOptions& options) {
  Members members = {{"driver", qemu_json_string(format)}};
  for (const SourceOption& option : options) add(members, option);
  members.emplace_back("file", file.json);
  return {options.empty() ? file.plain : std::nullopt, object(members)};
}

NodeName debug_node(const NodeName& image, const SourceOptions& options) {
  Members members = {{"driver", "\"blkdebug\""}};
  std::string config;
  bool has_plain = image.plain.has_value();
  for (const SourceOption& option : options) {
    if (!makes_a_difference_to_debug(option.key)) continue;
    add(members, option);
    if (option.key == "config")
      config = option.value;
    else
      has_plain = false;
  }
  members.emplace_back("image", image.json);
  NodeName name{std::nullopt, object(members)};
  if (has_plain) name.plain = fmt::format("blkdebug:{}:{}", config, *image.plain);
  return name;
}

}  // namespace varve::cli
