#include "cli/debug_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <span>

#include "base/units.h"

namespace varve::cli {

namespace {

struct NamedEvent {
  std::string_view name;
  DebugEvent event;
};

// All that QEMU knows.
constexpr auto kEvents = std::to_array<NamedEvent>({
    {"none", DebugEvent::kNone},
    {"read_aio", DebugEvent::kReadAio},
    {"write_aio", DebugEvent::kWriteAio},
    {"flush_to_os", DebugEvent::kFlushToOs},
    {"flush_to_disk", DebugEvent::kFlushToDisk},
    {"pwritev", DebugEvent::kPwritev},
    {"pwritev_zero", DebugEvent::kPwritevZero},
    {"pwritev_done", DebugEvent::kPwritevDone},
    {"pwritev_rmw_head", DebugEvent::kPwritevRmwHead},
    {"pwritev_rmw_after_head", DebugEvent::kPwritevRmwAfterHead},
    {"pwritev_rmw_tail", DebugEvent::kPwritevRmwTail},
    {"pwritev_rmw_after_tail", DebugEvent::kPwritevRmwAfterTail},
    {"l1_update", DebugEvent::kNever},
    {"l1_grow_alloc_table", DebugEvent::kNever},
    {"l1_grow_write_table", DebugEvent::kNever},
    {"l1_grow_activate_table", DebugEvent::kNever},
    {"l1_shrink_write_table", DebugEvent::kNever},
    {"l1_shrink_free_l2_clusters", DebugEvent::kNever},
    {"l2_load", DebugEvent::kNever},
    {"l2_update", DebugEvent::kNever},
    {"l2_update_compressed", DebugEvent::kNever},
    {"l2_alloc_cow_read", DebugEvent::kNever},
    {"l2_alloc_write", DebugEvent::kNever},
    {"read_backing_aio", DebugEvent::kNever},
    {"read_compressed", DebugEvent::kNever},
    {"write_compressed", DebugEvent::kNever},
    {"vmstate_load", DebugEvent::kNever},
    {"vmstate_save", DebugEvent::kNever},
    {"cow_read", DebugEvent::kNever},
    {"cow_write", DebugEvent::kNever},
    {"cor_write", DebugEvent::kNever},
    {"reftable_load", DebugEvent::kNever},
    {"reftable_grow", DebugEvent::kNever},
    {"reftable_update", DebugEvent::kNever},
    {"refblock_load", DebugEvent::kNever},
    {"refblock_update", DebugEvent::kNever},
    {"refblock_update_part", DebugEvent::kNever},
    {"refblock_alloc", DebugEvent::kNever},
    {"refblock_alloc_hookup", DebugEvent::kNever},
    {"refblock_alloc_write", DebugEvent::kNever},
    {"refblock_alloc_write_blocks", DebugEvent::kNever},
    {"refblock_alloc_write_table", DebugEvent::kNever},
    {"refblock_alloc_switch_table", DebugEvent::kNever},
    {"cluster_alloc", DebugEvent::kNever},
    {"cluster_alloc_bytes", DebugEvent::kNever},
    {"cluster_alloc_space", DebugEvent::kNever},
    {"cluster_free", DebugEvent::kNever},
    {"empty_image_prepare", DebugEvent::kNever},
});

struct NamedKind {
  std::string_view name;
  RequestKind kind;
};

constexpr auto kKinds = std::to_array<NamedKind>({{"read", kRequestRead},
                                                  {"write", kRequestWrite},
                                                  {"write-zeroes", kRequestWriteZeroes},
                                                  {"discard", kRequestDiscard},
                                                  {"flush", kRequestFlush},
                                                  {"block-status", kRequestBlockStatus}});

constexpr std::string_view kErrorGroup = "inject-error";
constexpr std::string_view kStateGroup = "set-state";
constexpr auto kErrorKeys =
    std::to_array<std::string_view>({"event", "state", "iotype", "errno", "sector", "once", "immediately"});
constexpr auto kStateKeys = std::to_array<std::string_view>({"event", "state", "new_state"});
constexpr auto kLimitKeys = std::to_array<std::string_view>(
    {"align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"});

// A rule as it is written: in the file, or as options.
struct Section {
  std::string_view group;
  SourceOptions members;
};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

bool knows(std::string_view group, std::string_view key) {
  if (group == kErrorGroup) return std::ranges::find(kErrorKeys, key) != kErrorKeys.end();
  return std::ranges::find(kStateKeys, key) != kStateKeys.end();
}

// Decimal, or hexadecimal behind 0x; a negative one counts from the other end, as in C.
Result<uint64_t> number(const SourceOptions& members, std::string_view key, uint64_t otherwise) {
  const std::optional<std::string> text = value_of(members, key);
  if (!text) return otherwise;
  std::string_view digits = *text;
  const bool negative = digits.starts_with('-');
  if (negative) digits.remove_prefix(1);
  const bool hexadecimal = digits.starts_with("0x") || digits.starts_with("0X");
  if (hexadecimal) digits.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, hexadecimal ? 16 : 10);
  if (error != std::errc() || end != digits.data() + digits.size())
    return invalid(fmt::format("Parameter '{}' expects a number", key));
  return negative ? -value : value;
}

Result<bool> flag(const SourceOptions& members, std::string_view key) {
  const std::optional<std::string> text = value_of(members, key);
  if (!text || text == "off" || text == "no" || text == "false" || text == "n") return false;
  if (text == "on" || text == "yes" || text == "true" || text == "y") return true;
  return invalid(fmt::format("Parameter '{}' expects 'on' or 'off'", key));
}

Result<DebugEvent> event_of(const SourceOptions& members) {
  const std::optional<std::string> name = value_of(members, "event");
  if (!name) return invalid("Missing event name for rule");
  const auto found = std::ranges::find(kEvents, *name, &NamedEvent::name);
  if (found == kEvents.end()) return invalid(fmt::format("invalid parameter value: {}", *name));
  return found->event;
}

Result<ErrorRule> error_rule(const SourceOptions& members) {
  ErrorRule rule{.event = TRY(event_of(members))};
  rule.state = TRY(number(members, "state", 0));
  rule.error = static_cast<int>(TRY(number(members, "errno", EIO)));
  if (const uint64_t sector = TRY(number(members, "sector", UINT64_MAX)); sector != UINT64_MAX)
    rule.offset = sector * 512;
  rule.once = TRY(flag(members, "once"));
  TRY(flag(members, "immediately"));  // when is a matter of QEMU's event loop
  const std::optional<std::string> kind = value_of(members, "iotype");
  if (!kind) return rule;
  const auto found = std::ranges::find(kKinds, *kind, &NamedKind::name);
  if (found == kKinds.end()) return invalid(fmt::format("invalid parameter value: {}", *kind));
  rule.kinds = found->kind;
  return rule;
}

Result<StateRule> state_rule(const SourceOptions& members) {
  return StateRule{.event = TRY(event_of(members)),
                   .state = TRY(number(members, "state", 0)),
                   .new_state = TRY(number(members, "new_state", 0))};
}

Result<void> check_keys(const Section& section) {
  for (const SourceOption& member : section.members)
    if (!knows(section.group, member.key) && member.key != "id")
      return invalid(fmt::format("Invalid parameter '{}'", member.key));
  return {};
}

// `key = "value"`. Whatever else stands behind the first word leaves it without a value; a line without any word is an
// error.
std::optional<SourceOption> parse_line(std::string_view line) {
  constexpr std::string_view kBlanks = " \t\r";
  const auto skip_blanks = [&] { line.remove_prefix(std::min(line.find_first_not_of(kBlanks), line.size())); };
  skip_blanks();
  if (line.empty()) return std::nullopt;
  SourceOption option{.key = std::string(line.substr(0, line.find_first_of(kBlanks))), .value = "", .json = ""};
  line.remove_prefix(option.key.size());
  for (const char expected : {'=', '"'}) {
    skip_blanks();
    if (!line.starts_with(expected)) return option;
    line.remove_prefix(1);
  }
  option.value = line.substr(0, line.find('"'));
  return option;
}

// [inject-error] and [set-state], each with its lines below it. Empty lines and those that begin with # say nothing.
Result<std::vector<Section>> read_config(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  if (!file) return invalid(fmt::format("Could not read blkdebug config file: {}", std::strerror(errno)));
  std::vector<Section> sections;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with('#')) continue;
    if (line.starts_with('[')) {
      const size_t end = line.find_first_of("] ");
      if (end == std::string::npos) return invalid("parse error");
      const std::string group = line.substr(1, end - 1);
      if (!sections.empty()) TRY(check_keys(sections.back()));
      if (group != kErrorGroup && group != kStateGroup)
        return invalid(fmt::format("There is no option group '{}'", group));
      sections.push_back({group == kErrorGroup ? kErrorGroup : kStateGroup, {}});
      continue;
    }
    std::optional<SourceOption> member = parse_line(line);
    if (!member) return invalid("parse error");
    if (sections.empty()) return invalid("no group defined");
    sections.back().members.push_back(std::move(*member));
  }
  if (!sections.empty()) TRY(check_keys(sections.back()));
  return sections;
}

// "inject-error.0.event=…, inject-error.1.…", or a single rule without a number.
Result<void> add_sections(SourceOptions options, std::string_view group, std::vector<Section>& sections) {
  if (options.empty()) return {};
  const auto is_own = [&](const SourceOption& option) { return knows(group, option.key); };
  if (std::ranges::any_of(options, is_own)) {
    const auto unknown = std::ranges::find_if_not(options, is_own);
    if (unknown != options.end()) return invalid(fmt::format("Unknown option '{}' for [{}]", unknown->key, group));
    sections.push_back({group, std::move(options)});
    return {};
  }
  for (size_t i = 0;; ++i) {
    if (value_of(options, fmt::format("{}", i)))
      return invalid(fmt::format("[{}] section (index {}) does not consist of keys", group, i));
    SourceOptions members = take_prefixed(options, fmt::format("{}.", i));
    if (members.empty()) break;
    const auto unknown = std::ranges::find_if_not(members, is_own);
    if (unknown != members.end())
      return invalid(fmt::format("[{}] section doesn't support the option '{}'", group, unknown->key));
    sections.push_back({group, std::move(members)});
  }
  if (!options.empty()) return invalid(fmt::format("Unused option '{}' for [{}]", options.front().key, group));
  return {};
}

Result<uint64_t> limit(const SourceOptions& options, std::string_view key) {
  const std::optional<std::string> text = value_of(options, key);
  if (!text) return uint64_t{0};
  const Result<uint64_t> size = parse_size(*text);
  if (size) return *size;
  return invalid(
      fmt::format("Parameter '{}' expects a non-negative number below 2^64\n"
                  "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                  "and exabytes, respectively.",
                  key));
}

Result<DebugLimits> parse_limits(const SourceOptions& options) {
  std::array<uint64_t, kLimitKeys.size()> sizes{};
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = TRY(limit(options, kLimitKeys[i]));
  const DebugLimits limits{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  const uint64_t block = std::max<uint64_t>(limits.alignment, 1);
  const uint64_t units[] = {1,     block,
                            block, std::max(limits.write_zeroes_alignment, block),
                            block, std::max(limits.discard_alignment, block)};
  for (size_t i = 0; i < sizes.size(); ++i) {
    const bool is_power = i != 0 || (sizes[0] & (sizes[0] - 1)) == 0;
    if (sizes[i] != 0 && (sizes[i] >= INT32_MAX || !is_power || sizes[i] % units[i] != 0))
      return invalid(fmt::format("Cannot meet constraints with {} {}", kLimitKeys[i], sizes[i]));
  }
  return limits;
}

}  // namespace

Result<DebugOptions> parse_debug_options(const SourceOptions& options) {
  SourceOptions own = options;
  SourceOptions errors = take_prefixed(own, "inject-error.");
  SourceOptions states = take_prefixed(own, "set-state.");
  for (const std::string_view key : kLimitKeys) TRY(limit(own, key));
  std::vector<Section> sections;
  if (const auto path = value_of(own, "config")) sections = TRY(read_config(*path));
  TRY(add_sections(std::move(errors), kErrorGroup, sections));
  TRY(add_sections(std::move(states), kStateGroup, sections));
  DebugOptions result;
  for (const Section& section : sections)
    if (section.group == kErrorGroup) result.errors.push_back(TRY(error_rule(section.members)));
  for (const Section& section : sections)
    if (section.group == kStateGroup) result.states.push_back(TRY(state_rule(section.members)));
  result.limits = TRY(parse_limits(own));
  for (const SourceOption& option : own) {
    const bool known = option.key == "driver" || option.key == "config" || is_tuning_option(option.key) ||
                       std::ranges::find(kLimitKeys, option.key) != kLimitKeys.end();
    if (!known) return invalid(fmt::format("Block protocol 'blkdebug' doesn't support the option '{}'", option.key));
  }
  return result;
}

}  // namespace varve::cli
