#include "image/backing_name.h"

#include <fmt/format.h>

namespace varve::image {

Result<void> refuse_protocol(const std::string& name) {
  const std::optional<std::string> protocol = protocol_of(name);
  if (!protocol) return {};
  return make_error(ErrorKind::kRefused,
                    fmt::format("'{}' is not a path: names with a protocol ({}:) are not opened", name, *protocol))
      .with_note("a file whose name has a colon in it is named with its directory, for instance ./a:b.qcow2");
}

std::optional<std::string> protocol_of(std::string_view name) {
  const size_t end = name.find_first_of(":/");
  if (end == std::string_view::npos || name[end] != ':') return std::nullopt;
  return std::string(name.substr(0, end));
}

std::string resolve_backing_name(std::string_view overlay_path, std::string_view name) {
  constexpr std::string_view kFile = "file:";
  const std::optional<std::string> protocol = protocol_of(name);
  if (protocol == "file") return std::string(name.substr(kFile.size()));
  if (protocol || name.starts_with('/')) return std::string(name);
  const size_t slash = overlay_path.rfind('/');
  if (slash == std::string_view::npos) return std::string(name);
  return std::string(overlay_path.substr(0, slash + 1)) + std::string(name);
}

}  // namespace varve::image
