// An incremental export, with everything that it stands on, becomes a full one again: what an import takes.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "host/host.h"
#include "transfer/export_chain.h"

namespace varve {

// Where an export is put together: a directory that nobody else has access to. It is found again by the same import,
// which goes on with what is whole in it.
class ImportDirectory {
 public:
  // In the host directory `parent`; `key` is part of a name. kInUse: somebody else is at it.
  static Result<ImportDirectory> open(const std::string& parent, const std::string& key);

  const std::string& path() const { return path_; }
  bool is_empty() const;
  uint64_t occupied_bytes() const;
  // With everything that is left in it.
  Result<void> remove() const;

 private:
  ImportDirectory(std::string path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  UniqueFd lock_;
};

// Puts the files of an export together in `directory`, with a manifest as a full export has it. What is there with its
// own name is whole. Contents are not compared with the manifest: whoever imports the result does. `watch`: bytes of
// files.
Result<void> put_together(const ExportChain& chain, const std::string& directory, const Watch& watch);

// The space that each file takes, in bytes, by its path: data without its holes. Opens every file, and so finds what
// is missing or lies.
Result<std::map<std::string, uint64_t>> data_bytes(const ExportChain& chain);

// What would stop the import in the end, when all of its files are there: everything that the host has against it, with
// its images in `images_directory` (a root path; empty: where they were) and put together in `put_together_in` (one of
// them).
Result<void> check_import(Host& host, const ExportChain& chain, const std::string& images_directory,
                          const std::string& put_together_in, const std::map<std::string, uint64_t>& data);

// An import of this very export came as far as to define the domain, and its end is all that is left to do.
Result<bool> is_imported(const Host& host, const ExportChain& chain);

// The host path of the stored file that is not what the manifest beside it says, and so makes the file of the machine
// another one; empty: there is none. Reads all of them.
Result<std::string> find_damage(const ExportChain& chain, const std::string& path);

// The error for that, or `otherwise`.
Error damage_error(const ExportChain& chain, const std::string& path, Error otherwise);

}  // namespace varve
