// An export with everything that it stands on: an incremental one has a base, which may have one, and so on down to one
// that is whole by itself. All of their manifests are read and compared with one another before anything is believed:
// a base has to be the very one that the manifest above it was made upon.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "store/layout.h"
#include "transfer/exported_file.h"
#include "transfer/manifest.h"

namespace varve {

inline constexpr size_t kMaxIncrements = 32;

// The unit of difference: a cluster of a delta.
inline constexpr uint64_t kDeltaCluster = uint64_t{64} << 10;

struct ExportLevel {
  Layout layout;
  Manifest manifest;
};

// A file as an export in a chain has it.
struct StoredFile {
  Layout layout;
  std::string path;  // a root path of it
  uint64_t size_bytes = 0;
  std::string sha256;
};

// How the delta of a file names what it stands on.
struct DeltaBacking {
  std::string name;    // relative to where the delta is
  std::string format;  // of the file: "raw", or "qcow2" where it is a delta, too
};

class ExportChain {
 public:
  // The export of `domain` in the directory of `layout`. `bases`, host paths: where exports that it stands on are,
  // if not where the manifests say; which is which, their checksums tell. kCorrupt, kRefused, kNotFound: with what is
  // the matter, and what helps.
  static Result<ExportChain> open(const Layout& layout, const std::string& domain,
                                  const std::vector<std::string>& bases = {});
  // One that is being made: `top` stands on `base`.
  static ExportChain on(ExportLevel top, const ExportChain& base);

  const Manifest& manifest() const { return levels_.front().manifest; }
  const Layout& layout() const { return levels_.front().layout; }
  const std::string& manifest_sha256() const { return sha256_; }
  size_t depth() const { return levels_.size(); }

  // Everything about the files that can be told without reading them: kinds, sizes, what deltas say of themselves.
  // `seen` is shown each, opened; it may be empty.
  Result<void> check_files(const std::function<Result<void>(const ManifestFile&, ExportedFile&)>& seen) const;
  // Nobody may write to it while it is open.
  Result<std::unique_ptr<ExportedFile>> open_file(const std::string& path) const;
  // Of the text of a document, which is compared with the manifest.
  Result<std::string> document(const std::string& path) const;
  // How a delta of the file has to name its backing file; of the newest export, or the one `level` below it.
  DeltaBacking backing_of(const std::string& path, size_t level = 0) const;
  // The path by which QEMU arrives at the last file that the newest one's delta stands on, where the newest export is
  // in the host directory `directory`: names appended to one another, nothing resolved.
  std::string path_in_qemu(const std::string& directory, const std::string& path) const;
  // Where the bytes of the file are, the newest first.
  std::vector<StoredFile> stored_files(const std::string& path) const;

 private:
  using Index = std::unordered_map<std::string, size_t>;  // of a manifest's files, by their paths

  ExportChain() = default;
  void add(ExportLevel level);
  const ManifestFile* listed(const std::string& path, size_t level) const;
  Result<const ManifestFile*> find(const std::string& path, size_t level) const;
  Result<void> check_against_base(size_t level) const;

  std::vector<ExportLevel> levels_;  // the newest first; never empty
  std::vector<Index> indexes_;       // of each
  std::string sha256_;
};

// What an export consists of once it is put together.
Manifest whole(Manifest manifest);

}  // namespace varve
