// The earlier export that an incremental one of a machine is made upon: which one, and whether it fits.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "operation/preflight.h"
#include "store/layout.h"
#include "transfer/export_chain.h"
#include "transfer/inventory.h"

namespace varve {

// The export of the machine in the host directory `directory`.
Result<ExportChain> open_base(const std::string& directory, const DomainDocument& definition);

// The newest of the exports of the machine beside `directory` (which need not exist) that have the snapshot. kNotFound:
// none has it, with what they have. What can't be read is told to `notes`, and left out.
Result<ExportChain> find_base(const std::string& directory, const DomainDocument& definition,
                              const std::string& snapshot, std::vector<std::string>& notes);

// That the machine and the earlier export have the same snapshot of that name: by its metadata, and by the images that
// it lies in. Else `preflight` is told what each has.
Result<void> check_same_snapshot(const Layout& layout, const DomainDocument& definition, const Inventory& inventory,
                                 const ExportChain& base, const std::string& snapshot, Preflight& preflight);

// How the manifest of an export in `directory` names its base: kRefused where that does not lie beside it. Both are
// real host paths.
Result<std::string> base_directory_from(const std::string& directory, const std::string& base);

}  // namespace varve
