// What an export says of itself: which files it consists of, and their checksums (docs/moving.md). It stands at
// the top of the exported tree as DOMAIN.manifest.json, beside DOMAIN.sha256, which says the same to sha256sum.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace varve {

enum class FileRole : uint8_t { kDefinition, kSnapshot, kImage, kBackingImage, kMemory, kNvram, kTpm, kBoot };

const char* name_of(FileRole role);  // "definition"

struct ManifestFile {
  std::string path;  // a root path of the exported tree
  FileRole role = FileRole::kImage;
  uint64_t size_bytes = 0;
  std::string sha256;  // 64 hexadecimal digits
};

struct Manifest {
  std::string domain;
  std::string uuid;
  int64_t created_sec = 0;          // Unix time
  std::vector<ManifestFile> files;  // paths differ, and each is a plain path that leads nowhere but down

  const ManifestFile* find(std::string_view path) const;
};

// "/a/b": no "..", ".", "//" or slash at the end.
bool is_plain_path(const std::string& path);

inline constexpr const char* kManifestSuffix = ".manifest.json";
inline constexpr const char* kChecksumsSuffix = ".sha256";

std::string to_json(const Manifest& manifest);
// What `sha256sum -c` reads, with a few lines for people before it.
std::string to_checksums(const Manifest& manifest);
// kCorrupt for anything that to_json() does not write: `name` is what messages call it.
Result<Manifest> parse_manifest(std::string_view text, const std::string& name);

}  // namespace varve
