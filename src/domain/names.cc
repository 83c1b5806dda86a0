#include "domain/names.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "domain/xml.h"

namespace varve {

namespace {

Error bad_name(std::string_view what, std::string_view name, const std::string& why) {
  std::string shown;
  for (const char c : name.substr(0, 60)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F || !xml::is_utf8(name)) {
      shown += byte < 0x20 || byte >= 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
    } else {
      shown.push_back(c);
    }
  }
  if (name.size() > 60) shown += "…";
  return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' cannot be the name of a {}: {}", shown, what, why));
}

// C0, DEL and C1 (U+0080 to U+009F, in UTF-8 0xC2 0x80 to 0xC2 0x9F), line and paragraph separators aside: what moves
// a terminal's cursor.
bool has_control_character(std::string_view name) {
  for (size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    if (byte < 0x20 || byte == 0x7F) return true;
    if (byte == 0xC2 && i + 1 < name.size() && static_cast<unsigned char>(name[i + 1]) < 0xA0) return true;
  }
  return false;
}

Result<void> check_name(std::string_view what, std::string_view name) {
  if (name.empty()) return bad_name(what, name, "it is empty");
  if (name.find('/') != std::string_view::npos) return bad_name(what, name, "it contains a '/'");
  if (name.front() == '.') return bad_name(what, name, "it begins with a dot");
  if (!xml::is_utf8(name)) return bad_name(what, name, "it is not UTF-8");
  if (has_control_character(name)) return bad_name(what, name, "it contains a control character");
  if (name.size() > kMaxNameSize) {
    return bad_name(what, name, fmt::format("it has {} bytes, at most {} are possible", name.size(), kMaxNameSize));
  }
  return {};
}

}  // namespace

Result<void> check_domain_name(std::string_view name) {
  return check_name("domain", name);
}
Result<void> check_snapshot_name(std::string_view name) {
  return check_name("snapshot", name);
}

bool is_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos && name.size() + 4 <= 255;
}

std::string there_are(const std::vector<std::string>& names) {
  if (names.empty()) return "there are none";
  constexpr size_t kMost = 10;
  const size_t shown = std::min(names.size(), kMost);
  std::string text =
      fmt::format("there are: {}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

}  // namespace varve
