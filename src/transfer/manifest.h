// What an export says of itself: which files it consists of, and their checksums (docs/moving.md). It stands at
// the top of the exported tree as DOMAIN.manifest.json, beside DOMAIN.sha256, which says the same to sha256sum.
//
// An incremental export has what changed since an earlier one, its base, and refers to that for the rest
// (docs/decisions/011-incremental-exports.md). Its manifest is of version 2, which whoever knows of none refuses.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace varve {

enum class FileRole : uint8_t { kDefinition, kSnapshot, kImage, kBackingImage, kMemory, kNvram, kTpm, kBoot };

const char* name_of(FileRole role);  // "definition"

// How an export has a file.
enum class Storage : uint8_t {
  kWhole,
  kDelta,      // a qcow2 image that stands on the file of the same path in the base
  kUnchanged,  // not at all: it is the base's, to the last byte
};

const char* name_of(Storage storage);  // "whole"

struct ManifestFile {
  std::string path;  // a root path of the exported tree
  FileRole role = FileRole::kImage;
  uint64_t size_bytes = 0;
  std::string sha256;  // 64 hexadecimal digits
  // Of incremental exports only; documents are always whole.
  Storage storage = Storage::kWhole;
  uint64_t delta_bytes = 0;       // kDelta: of the image's file
  std::string delta_sha256 = {};  // likewise
};

// What an incremental export stands on.
struct ManifestBase {
  std::string directory;        // "../NAME", perhaps with more names: never out of the parent directory
  std::string manifest_sha256;  // of the base's manifest, so that another base is noticed
  std::string snapshot;         // that both have
};

struct Manifest {
  std::string domain;
  std::string uuid;
  int64_t created_sec = 0;          // Unix time
  std::vector<ManifestFile> files;  // paths differ, and each is a plain path that leads nowhere but down
  std::optional<ManifestBase> base = std::nullopt;  // nothing: it is whole by itself

  const ManifestFile* find(std::string_view path) const;
};

// "/a/b": no "..", ".", "//" or slash at the end.
bool is_plain_path(const std::string& path);

inline constexpr const char* kManifestSuffix = ".manifest.json";
inline constexpr const char* kChecksumsSuffix = ".sha256";

// Where the export has the bytes of a file, as a root path: of one that is whole, or of its delta. Empty: nowhere.
// Incremental exports keep everything in a directory of its own, so that they don't look like a host.
std::string stored_path(const Manifest& manifest, const ManifestFile& file);
inline constexpr const char* kDeltaSuffix = ".delta";

// That its text can hold the manifest as it is. kRefused: a name is no UTF-8, which JSON can't record.
Result<void> check_recordable(const Manifest& manifest);

std::string to_json(const Manifest& manifest);
// What `sha256sum -c` reads, with a few lines for people before it.
std::string to_checksums(const Manifest& manifest);
// kCorrupt for anything that to_json() does not write: `name` is what messages call it.
Result<Manifest> parse_manifest(std::string_view text, const std::string& name);

}  // namespace varve
