// An incremental export, with everything that it stands on, becomes a full one again: what an import takes.
#pragma once

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

// The space that this takes, in bytes: data without its holes. Opens every file, and so finds what is missing or lies.
Result<uint64_t> data_bytes(const ExportChain& chain);

}  // namespace varve
