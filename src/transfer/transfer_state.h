// How far a transfer has come, kept on the receiving side so that one that was interrupted goes on: which files were
// begun there, and which are whole. One small file per domain, var/lib/varve/transfer/DOMAIN.json, replaced atomically
// whenever a file is begun or finished; gone when the domain is defined. Its files are this transfer's own.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "store/journal_record.h"
#include "store/layout.h"

namespace varve {

struct TransferredFile {
  std::string path;         // where it is going to be: a root path of the receiving host
  std::string source_path;  // where it comes from: a root path of the other host
  FileStamp source;         // as it was when the copy began
  bool is_whole = false;    // the copy is durable, under its temporary name or its own
  std::string checksum;     // of a whole file: of the source (checksum.h); empty: it shares the source's blocks
  FileStamp copied;         // of a whole file, as it is there
  bool is_settled = false;  // it has the name of its backing file on this host: no longer the source's bytes
};

struct TransferState {
  std::string purpose;    // what the transfer was for: checksums are of other kinds; empty: none is under way
  std::string uuid;       // of the domain
  std::string documents;  // checksum of the source's documents when they were written there; empty: they were not
  std::vector<TransferredFile> files;

  TransferredFile* find(const std::string& path);
};

class TransferStateFile {
 public:
  TransferStateFile(Layout layout, std::string domain) : layout_(std::move(layout)), domain_(std::move(domain)) {}

  std::string root_path() const;
  // Nothing is under way: an empty state. kCorrupt for a file that can't be understood.
  Result<TransferState> load() const;
  Result<void> save(const TransferState& state) const;
  Result<void> remove() const;

 private:
  Layout layout_;
  std::string domain_;
};

}  // namespace varve
