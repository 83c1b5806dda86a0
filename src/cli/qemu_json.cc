#include "cli/qemu_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace varve::cli {

namespace {

constexpr uint32_t kReplacement = 0xfffd;

// Takes one code point off `text`. A wrong sequence is taken as a whole, as far as its continuation bytes go.
uint32_t take_code_point(std::string_view& text) {
  const auto first = static_cast<unsigned char>(text[0]);
  text.remove_prefix(1);
  if (first < 0x80) return first;
  if (first < 0xc0 || first >= 0xf8) return kReplacement;
  const unsigned more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  uint32_t point = first & (0x3fu >> more);
  unsigned taken = 0;
  while (taken < more && !text.empty() && (static_cast<unsigned char>(text[0]) & 0xc0) == 0x80) {
    point = point << 6 | (static_cast<unsigned char>(text[0]) & 0x3fu);
    text.remove_prefix(1);
    ++taken;
  }
  constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
  const bool is_surrogate = point >= 0xd800 && point < 0xe000;
  const bool is_noncharacter = (point >= 0xfdd0 && point <= 0xfdef) || (point & 0xfffe) == 0xfffe;
  if (first == 0xc0 && taken == 1 && point == 0) return 0;  // QEMU takes "modified UTF-8"
  if (taken < more || point < kSmallest[more] || point > 0x10ffff || is_surrogate || is_noncharacter) {
    return kReplacement;
  }
  return point;
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  while (!text.empty()) {
    const uint32_t point = take_code_point(text);
    switch (point) {
      case '"':
        out += "\\\"";
        continue;
      case '\\':
        out += "\\\\";
        continue;
      case '\b':
        out += "\\b";
        continue;
      case '\f':
        out += "\\f";
        continue;
      case '\n':
        out += "\\n";
        continue;
      case '\r':
        out += "\\r";
        continue;
      case '\t':
        out += "\\t";
        continue;
      default:
        break;
    }
    if (point >= 0x20 && point < 0x7f) {
      out += static_cast<char>(point);
    } else if (point <= 0xffff) {
      out += fmt::format("\\u{:04X}", point);
    } else {
      out +=
          fmt::format("\\u{:04X}\\u{:04X}", 0xd800 + ((point - 0x10000) >> 10), 0xdc00 + ((point - 0x10000) & 0x3ff));
    }
  }
  out += '"';
}

void append(std::string& out, const nlohmann::ordered_json& value, size_t depth) {
  const auto new_line = [&](size_t level) { out += "\n" + std::string(4 * level, ' '); };
  if (value.is_object()) {
    out += '{';
    bool first = true;
    for (const auto& [key, member] : value.items()) {
      if (!first) out += ',';
      first = false;
      new_line(depth + 1);
      append_string(out, key);
      out += ": ";
      append(out, member, depth + 1);
    }
    new_line(depth);
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    bool first = true;
    for (const auto& element : value) {
      if (!first) out += ',';
      first = false;
      new_line(depth + 1);
      append(out, element, depth + 1);
    }
    new_line(depth);
    out += ']';
  } else if (value.is_string()) {
    append_string(out, value.get_ref<const std::string&>());
  } else {
    out += value.dump();
  }
}

}  // namespace

std::string qemu_json(const nlohmann::ordered_json& value) {
  std::string out;
  append(out, value, 0);
  return out + "\n";
}

std::string qemu_json_string(std::string_view text) {
  std::string out;
  append_string(out, text);
  return out;
}

}  // namespace varve::cli
