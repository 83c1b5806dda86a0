#include "nbd/export_spec.h"

#include <fmt/format.h>

#include <set>

namespace varve::nbd {
namespace {

Error wrong(std::string message, std::string remedy) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message)).with_note(std::move(remedy));
}

Error twice(const std::string& key) {
  return wrong(fmt::format("{}= is given twice for one export", key), "export=NAME begins another one");
}

bool is_unreserved(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
         c == '_' || c == '~';
}

// RFC 3986; `also` are characters that may stand for themselves.
std::string percent_encoded(const std::string& text, std::string_view also) {
  std::string result;
  for (const char c : text) {
    if (is_unreserved(c) || also.find(c) != std::string_view::npos) {
      result += c;
    } else {
      result += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return result;
}

}  // namespace

Result<void> ExportSpecs::add(const std::string& key, const std::string& value) {
  if (key == "export") {
    if (value.empty()) return wrong("export= has no name", "a name says which of the disks a client wants");
    specs_.push_back({.name = value, .point = {}});
    has_format_.push_back(false);
    return {};
  }
  if (specs_.empty()) {
    specs_.emplace_back();
    has_format_.push_back(false);
  }
  ExportSpec& spec = specs_.back();
  if (key == "file") {
    if (value.empty()) return wrong("file= has no name", "file=IMAGE names the image");
    if (!spec.point.path.empty()) return twice(key);
    spec.point.path = value;
  } else if (key == "format") {
    const auto format = image::format_of_name(value);
    if (!format || *format == image::Format::kLuks)
      return wrong(fmt::format("format={} is not served", value), "it is qcow2 or raw");
    if (has_format_.back()) return twice(key);
    has_format_.back() = true;
    spec.point.format = *format;
  } else if (key == "snapshot") {
    if (value.empty()) return wrong("snapshot= has no name", "leave it out for the disk as it is now");
    if (spec.point.snapshot) return twice(key);
    spec.point.snapshot = value;
  } else if (key == "overlay") {
    if (value.empty()) return wrong("overlay= has no name", "overlay=DIRECTORY says where the written data goes");
    if (spec.overlay) return twice(key);
    spec.overlay = value;
  } else {
    return wrong(fmt::format("there is no parameter {}=", key), "there are: export, file, format, snapshot, overlay");
  }
  return {};
}

Result<void> ExportSpecs::check() const {
  if (specs_.empty()) return wrong("nothing is to be served", "file=IMAGE names an image");
  std::set<std::string> names;
  for (const ExportSpec& spec : specs_) {
    const std::string what = spec.name.empty() ? "the export" : fmt::format("export '{}'", spec.name);
    if (spec.name.empty() && specs_.size() > 1)
      return wrong("of several exports, the first has no name", "export=NAME comes before its other parameters");
    if (spec.point.path.empty()) return wrong(what + " has no image", "file=IMAGE names it");
    if (!names.insert(spec.name).second) return wrong(what + " is given twice", "give each its own name");
    if (spec.point.snapshot && spec.point.format != image::Format::kQcow2)
      return wrong(what + " is a snapshot of a raw image", "only qcow2 images have snapshots inside");
  }
  return {};
}

std::vector<std::string> parameters_of(const std::vector<ExportSpec>& specs) {
  std::vector<std::string> words;
  for (const ExportSpec& spec : specs) {
    if (!spec.name.empty()) words.push_back("export=" + spec.name);
    words.push_back("file=" + spec.point.path);
    words.push_back(std::string("format=") + image::name_of(spec.point.format));
    if (spec.point.snapshot) words.push_back("snapshot=" + *spec.point.snapshot);
    if (spec.overlay) words.push_back("overlay=" + *spec.overlay);
  }
  return words;
}

std::string unix_uri(const std::string& export_name, const std::string& socket, bool tls) {
  return fmt::format("{}+unix:///{}?socket={}", tls ? "nbds" : "nbd", percent_encoded(export_name, ""),
                     percent_encoded(socket, "/"));
}

std::string tcp_uri(const std::string& export_name, const std::string& address, unsigned port, bool tls) {
  const bool is_ipv6 = address.find(':') != std::string::npos;
  return fmt::format("{}://{}{}{}:{}/{}", tls ? "nbds" : "nbd", is_ipv6 ? "[" : "", address, is_ipv6 ? "]" : "", port,
                     percent_encoded(export_name, ""));
}

}  // namespace varve::nbd
