// A machine taken whole from one host to another, or within its host to another directory: every file that it is made
// of (inventory.h), its definition, and its snapshots with their tree. Copies come first, under temporary names; the
// receiving host knows of the machine when all of them are there and are durable, and not before. An interrupted
// transfer is gone on with by giving the same command again (transfer_state.h).
//
// The source is only read. Whoever wants it gone calls remove_source() after run().
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "host/host.h"
#include "operation/operation.h"
#include "operation/plan.h"
#include "transfer/inventory.h"
#include "transfer/placement.h"
#include "transfer/transfer_state.h"

namespace varve {

enum class TransferPurpose : uint8_t { kMove, kExport, kImport };

struct TransferRequest {
  TransferPurpose purpose = TransferPurpose::kMove;
  std::string domain;
  std::string images_directory;  // where images go: a root path of the receiving host; empty: where they are (place())
  bool verifies = false;         // what was written is read back from its disk
  bool takes_files = false;      // kImport: the source is a copy that nobody needs any more; its files may be renamed
  std::string command;           // "vm move 'a' --to 'dir:/mnt'", what the user would type again
  std::optional<Manifest> manifest = std::nullopt;  // kImport: what the source has to be, to the last byte
};

class Transfer {
 public:
  // Takes the locks of the domain on both hosts, and of every file; refuses with every reason. `target` may be
  // `source`: then the machine stays there, and its images move.
  static Result<Transfer> plan(Host& source, Host& target, TransferRequest request);
  Transfer(Transfer&&) noexcept;
  ~Transfer();

  Plan& plan();
  // Progress counts bytes of files. On failure the error says that the same command goes on.
  Result<void> run(const Watch& watch);
  // After run(), between two hosts: nothing else is left to do; the state of the transfer goes.
  Result<void> finish();
  // After run(): what the receiving tree holds, with the documents.
  Result<Manifest> manifest(int64_t now_sec) const;
  // Instead of finish(): the source goes, unless one of its files is another one by now, or needed by
  // another domain. The notes say what stays.
  Result<std::vector<std::string>> remove_source();

 private:
  class Work;
  explicit Transfer(std::unique_ptr<Work> work);
  std::unique_ptr<Work> work_;
};

}  // namespace varve
