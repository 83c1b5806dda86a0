// That what is about to be imported is what its manifest says, as far as that can be told before it is read: every
// document to the last byte, every other file's size.
#pragma once

#include "domain/snapshot_document.h"
#include "operation/plan.h"
#include "operation/preflight.h"
#include "store/layout.h"
#include "transfer/inventory.h"
#include "transfer/manifest.h"

namespace varve {

// Differences are told to `preflight`; what is listed and not needed, to the plan's notes.
void check_manifest(const Manifest& manifest, const Layout& layout, const Inventory& inventory, Preflight& preflight,
                    Plan& plan);

}  // namespace varve
