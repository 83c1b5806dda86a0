// Where the LUKS header of an encrypted image lies (qcow2 specification, "Full disk encryption header pointer").
#pragma once

#include "crypto/luks_volume.h"
#include "qcow2/header.h"

namespace varve::qcow2 {

// What the crypto extension of `header` points to in `file`, which outlives the result. kCorrupt where there is none
// that could be: not 16 bytes, not at a cluster. That the file goes so far is not said.
Result<crypto::LuksArea> luks_area(BlockDevice& file, const Header& header);

}  // namespace varve::qcow2
