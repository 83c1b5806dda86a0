#include "transfer/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "domain/names.h"

namespace varve {

namespace {

using nlohmann::json;

constexpr const char* kFormat = "varve-export";
constexpr int kVersion = 1;
constexpr size_t kMaxFiles = 1000000;
constexpr std::pair<FileRole, const char*> kRoles[] = {
    {FileRole::kDefinition, "definition"},
    {FileRole::kSnapshot, "snapshot"},
    {FileRole::kImage, "image"},
    {FileRole::kBackingImage, "backing image"},
    {FileRole::kMemory, "memory"},
    {FileRole::kNvram, "nvram"},
    {FileRole::kTpm, "tpm"},
    {FileRole::kBoot, "boot"},
};

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// sha256sum puts a backslash before a line whose name has one, or a line break, in it, and escapes those.
std::string checksum_line(const ManifestFile& file) {
  std::string name;
  bool escaped = false;
  for (const char character : file.path.substr(1)) {
    const char* replacement = character == '\\'   ? "\\\\"
                              : character == '\n' ? "\\n"
                              : character == '\r' ? "\\r"
                                                  : nullptr;
    escaped = escaped || replacement != nullptr;
    if (replacement != nullptr) {
      name += replacement;
    } else {
      name += character;
    }
  }
  return fmt::format("{}{}  {}\n", escaped ? "\\" : "", file.sha256, name);
}

}  // namespace

bool is_plain_path(const std::string& path) {
  if (!path.starts_with('/') || path.size() < 2 || path.find('\0') != std::string::npos) return false;
  return std::filesystem::path(path).lexically_normal().string() == path && !path.ends_with('/');
}

const char* name_of(FileRole role) {
  return std::ranges::find(kRoles, role, &std::pair<FileRole, const char*>::first)->second;
}

const ManifestFile* Manifest::find(std::string_view path) const {
  const auto found = std::ranges::find(files, path, &ManifestFile::path);
  return found == files.end() ? nullptr : &*found;
}

std::string to_json(const Manifest& manifest) {
  json files = json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"path", file.path.substr(1)},
                     {"role", name_of(file.role)},
                     {"size_bytes", file.size_bytes},
                     {"sha256", file.sha256}});
  }
  const json document = {{"format", kFormat},
                         {"version", kVersion},
                         {"domain", manifest.domain},
                         {"uuid", manifest.uuid},
                         {"created", manifest.created_sec},
                         {"files", std::move(files)}};
  return document.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string to_checksums(const Manifest& manifest) {
  std::string text = fmt::format(
      "# The virtual machine '{0}', as exported by Varve. `sha256sum -c '{0}{1}'` in this directory checks every\n"
      "# file. Images are qcow2 or raw files as QEMU has them, the rest is libvirt's XML: without Varve, copy the\n"
      "# images where the definition says, `virsh define` it, and give each snapshot's XML, parents first, to\n"
      "# `virsh snapshot-create '{0}' FILE --redefine`.\n",
      manifest.domain, kChecksumsSuffix);
  for (const ManifestFile& file : manifest.files) text += checksum_line(file);
  return text;
}

Result<Manifest> parse_manifest(std::string_view text, const std::string& name) {
  const auto lies = [&](const std::string& what) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("{} is no manifest of an export: {}", name, what));
    error.path = name;
    return error;
  };
  const json document = json::parse(text, nullptr, false);
  if (!document.is_object() || document.value("format", json()) != kFormat) return lies("it is of another format");
  if (document.value("version", json()) != kVersion) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{} has version {} of the format, and this varve knows version {}", name,
                                  document.value("version", json()).dump(), kVersion));
  }
  const auto text_of = [](const json& object, const char* key) {
    const json value = object.value(key, json());
    return value.is_string() ? value.get<std::string>() : std::string();
  };
  Manifest manifest;
  manifest.domain = text_of(document, "domain");
  manifest.uuid = text_of(document, "uuid");
  if (const auto usable = check_domain_name(manifest.domain); !usable) return lies(usable.error().message);
  const json created = document.value("created", json());
  if (!created.is_number_integer()) return lies("it does not say when it was made");
  manifest.created_sec = created.get<int64_t>();
  const json files = document.value("files", json());
  if (!files.is_array() || files.size() > kMaxFiles) return lies("it does not list files");
  std::set<std::string> seen;
  for (const json& entry : files) {
    if (!entry.is_object()) return lies("it does not list files");
    ManifestFile file;
    file.path = "/" + text_of(entry, "path");
    if (!is_plain_path(file.path)) return lies(fmt::format("'{}' is no path below its directory", file.path.substr(1)));
    if (!seen.insert(file.path).second) return lies(fmt::format("it lists '{}' twice", file.path.substr(1)));
    const std::string role = text_of(entry, "role");
    const auto known = std::ranges::find_if(kRoles, [&](const auto& pair) { return pair.second == role; });
    if (known == std::end(kRoles)) return lies(fmt::format("'{}' has the unknown role '{}'", file.path, role));
    file.role = known->first;
    const json size = entry.value("size_bytes", json());
    if (!size.is_number_unsigned()) return lies(fmt::format("it does not say how long '{}' is", file.path));
    file.size_bytes = size.get<uint64_t>();
    file.sha256 = text_of(entry, "sha256");
    if (!is_sha256(file.sha256)) return lies(fmt::format("'{}' has no checksum", file.path));
    manifest.files.push_back(std::move(file));
  }
  return manifest;
}

}  // namespace varve
