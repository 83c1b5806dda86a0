#include "transfer/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "domain/names.h"
#include "domain/xml.h"
#include "store/layout.h"

namespace varve {

namespace {

using nlohmann::json;

// What is no UTF-8 becomes something that is: check_recordable() tells.
constexpr auto kReplaced = json::error_handler_t::replace;
constexpr const char* kFormat = "varve-export";
constexpr int kVersion = 1;
constexpr int kIncrementalVersion = 2;
constexpr size_t kMaxFiles = 1000000;
constexpr size_t kMaxBasePath = 1000;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 62;
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

constexpr std::pair<Storage, const char*> kStorages[] = {
    {Storage::kWhole, "whole"}, {Storage::kDelta, "delta"}, {Storage::kUnchanged, "unchanged"}};

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// sha256sum puts a backslash before a line whose name has one, or a line break, in it, and escapes those.
std::string checksum_line(const std::string& path, const std::string& sha256) {
  std::string name;
  bool escaped = false;
  for (const char character : path.substr(1)) {
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
  return fmt::format("{}{}  {}\n", escaped ? "\\" : "", sha256, name);
}

bool is_document(FileRole role) {
  return role == FileRole::kDefinition || role == FileRole::kSnapshot;
}

// "../NAME": what lies beside the export. Whoever unpacks a stranger's must not be led anywhere else.
bool is_base_directory(const std::string& path) {
  return path.size() <= kMaxBasePath && path.starts_with("../") && is_plain_path(path.substr(2));
}

json to_json(const ManifestFile& file, bool is_incremental) {
  json entry = {{"path", file.path.substr(1)},
                {"role", name_of(file.role)},
                {"size_bytes", file.size_bytes},
                {"sha256", file.sha256}};
  if (!is_incremental) return entry;
  entry["stored"] = name_of(file.storage);
  if (file.storage == Storage::kDelta)
    entry["delta"] = {{"size_bytes", file.delta_bytes}, {"sha256", file.delta_sha256}};
  return entry;
}

std::string text_of(const json& object, const char* key) {
  const json value = object.is_object() ? object.value(key, json()) : json();
  return value.is_string() ? value.get<std::string>() : std::string();
}

std::optional<uint64_t> size_of(const json& object) {
  const json value = object.is_object() ? object.value("size_bytes", json()) : json();
  return value.is_number_unsigned() ? std::optional(value.get<uint64_t>()) : std::nullopt;
}

// What is wrong with what an incremental export says of a file; empty: nothing.
std::string parse_storage(const json& entry, ManifestFile& file) {
  const std::string stored = text_of(entry, "stored");
  const auto known = std::ranges::find_if(kStorages, [&](const auto& pair) { return pair.second == stored; });
  if (known == std::end(kStorages)) return fmt::format("it does not say how it has '{}'", file.path);
  file.storage = known->first;
  if (file.size_bytes > kMaxFileBytes) return fmt::format("no file is as long as '{}'", file.path);
  if (is_document(file.role) && file.storage != Storage::kWhole) return fmt::format("'{}' is not whole", file.path);
  if (file.storage != Storage::kDelta) return {};
  const json delta = entry.value("delta", json());
  const auto size = size_of(delta);
  file.delta_sha256 = text_of(delta, "sha256");
  if (!size || !is_sha256(file.delta_sha256))
    return fmt::format("the delta of '{}' has no size or checksum", file.path);
  file.delta_bytes = *size;
  return {};
}

std::string parse_base(const json& entry, ManifestBase& base) {
  base = {.directory = text_of(entry, "directory"),
          .manifest_sha256 = text_of(entry, "manifest_sha256"),
          .snapshot = text_of(entry, "snapshot")};
  if (base.directory.empty()) return "it does not say what it stands on";
  if (!is_base_directory(base.directory)) {
    return fmt::format("'{}' is no path to a directory beside its own", base.directory);
  }
  if (!is_sha256(base.manifest_sha256)) return "what it stands on has no checksum";
  if (!is_file_name(base.snapshot)) return "it does not say since which snapshot";
  return {};
}

// A file of the machine may bear the name that another one's delta has.
std::string stored_twice(const Manifest& manifest) {
  std::set<std::string> seen;
  for (const ManifestFile& file : manifest.files) {
    const std::string path = stored_path(manifest, file);
    if (!path.empty() && !seen.insert(path).second) return path;
  }
  return {};
}

}  // namespace

bool is_plain_path(const std::string& path) {
  if (!path.starts_with('/') || path.size() < 2 || path.find('\0') != std::string::npos) return false;
  return std::filesystem::path(path).lexically_normal().string() == path && !path.ends_with('/');
}

const char* name_of(FileRole role) {
  return std::ranges::find(kRoles, role, &std::pair<FileRole, const char*>::first)->second;
}

const char* name_of(Storage storage) {
  return std::ranges::find(kStorages, storage, &std::pair<Storage, const char*>::first)->second;
}

std::string stored_path(const Manifest& manifest, const ManifestFile& file) {
  if (file.storage == Storage::kUnchanged) return {};
  if (!manifest.base) return file.path;
  const char* suffix = file.storage == Storage::kDelta ? kDeltaSuffix : "";
  return Layout::increment_directory(manifest.domain) + file.path + suffix;
}

const ManifestFile* Manifest::find(std::string_view path) const {
  const auto found = std::ranges::find(files, path, &ManifestFile::path);
  return found == files.end() ? nullptr : &*found;
}

Result<void> check_recordable(const Manifest& manifest) {
  const auto check = [](const std::string& what, const std::string& name) -> Result<void> {
    if (xml::is_utf8(name)) return {};
    return make_error(ErrorKind::kRefused, fmt::format("{} '{}' is not valid UTF-8, and a manifest can't record it",
                                                       what, json(name).dump(-1, ' ', true, kReplaced)))
        .with_note("rename it, and give the command again");
  };
  for (const ManifestFile& file : manifest.files) TRY(check("the path", file.path));
  if (!manifest.base) return {};
  TRY(check("the name of the earlier export's directory", manifest.base->directory));
  return check("the name of the snapshot", manifest.base->snapshot);
}

std::string to_json(const Manifest& manifest) {
  json files = json::array();
  for (const ManifestFile& file : manifest.files) files.push_back(to_json(file, manifest.base.has_value()));
  json document = {{"format", kFormat},
                   {"version", manifest.base ? kIncrementalVersion : kVersion},
                   {"domain", manifest.domain},
                   {"uuid", manifest.uuid},
                   {"created", manifest.created_sec},
                   {"files", std::move(files)}};
  if (manifest.base) {
    document["base"] = {{"directory", manifest.base->directory},
                        {"manifest_sha256", manifest.base->manifest_sha256},
                        {"snapshot", manifest.base->snapshot}};
  }
  return document.dump(2, ' ', false, kReplaced) + "\n";
}

std::string to_checksums(const Manifest& manifest) {
  constexpr const char* kIncrement =
      "# What has changed in the virtual machine '{0}' since an earlier export, as exported by Varve.\n"
      "# `sha256sum -c '{0}{1}'` in this directory checks what is here. Files named *.delta are qcow2 images that "
      "stand\n"
      "# on files of the earlier export: without Varve, `qemu-img convert -O raw FILE.delta FILE` gives the whole "
      "file,\n"
      "# and `truncate -s` its exact size, where that is no multiple of 512. '{0}.manifest.json' has sizes and "
      "checksums\n"
      "# of the whole files, and says which are the earlier export's.\n";
  std::string text = manifest.base ? fmt::format(kIncrement, manifest.domain, kChecksumsSuffix)
                                   : fmt::format(
                                         "# The virtual machine '{0}', as exported by Varve. `sha256sum -c '{0}{1}'` "
                                         "in this directory checks every\n"
                                         "# file. Images are qcow2 or raw files as QEMU has them, the rest is "
                                         "libvirt's XML: without Varve, copy the\n"
                                         "# images where the definition says, `virsh define` it, and give each "
                                         "snapshot's XML, parents first, to\n"
                                         "# `virsh snapshot-create '{0}' FILE --redefine`.\n",
                                         manifest.domain, kChecksumsSuffix);
  for (const ManifestFile& file : manifest.files) {
    const std::string path = stored_path(manifest, file);
    if (path.empty()) continue;
    text += checksum_line(path, file.storage == Storage::kDelta ? file.delta_sha256 : file.sha256);
  }
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
  const json version = document.value("version", json());
  if (version != kVersion && version != kIncrementalVersion) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{} has version {} of the format, and this varve knows versions {} and {}", name,
                                  version.dump(), kVersion, kIncrementalVersion));
  }
  Manifest manifest;
  if (version == kIncrementalVersion) {
    const std::string wrong = parse_base(document.value("base", json()), manifest.base.emplace());
    if (!wrong.empty()) return lies(wrong);
  }
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
    const auto size = size_of(entry);
    if (!size) return lies(fmt::format("it does not say how long '{}' is", file.path));
    file.size_bytes = *size;
    file.sha256 = text_of(entry, "sha256");
    if (!is_sha256(file.sha256)) return lies(fmt::format("'{}' has no checksum", file.path));
    if (manifest.base) {
      const std::string wrong = parse_storage(entry, file);
      if (!wrong.empty()) return lies(wrong);
    }
    manifest.files.push_back(std::move(file));
  }
  if (const std::string twice = stored_twice(manifest); !twice.empty()) {
    return lies(fmt::format("two files would be '{}'", twice.substr(1)));
  }
  return manifest;
}

}  // namespace varve
