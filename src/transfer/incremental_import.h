// An incremental export, with everything that it stands on, becomes a full one again: what an import takes.
#pragma once

#include <string>

#include "base/result.h"
#include "host/host.h"
#include "transfer/export_chain.h"

namespace varve {

// Puts the files of an export together in `directory`, an empty one that nobody else has access to, with a manifest as
// a full export has it. Contents are not compared with that: whoever imports the result does. `watch`: bytes of files.
Result<void> put_together(const ExportChain& chain, const std::string& directory, const Watch& watch);

// The space that this takes, in bytes: data without its holes. Opens every file, and so finds what is missing or lies.
Result<uint64_t> data_bytes(const ExportChain& chain);

}  // namespace varve
