// Writing a header anew: backing file, features, extensions, bitmaps. What snapshot commits and guest writes change of
// it lies in fixed places (patch_header_sector); this is for the rest.
#pragma once

#include "qcow2/header.h"

namespace varve::qcow2 {

// Replaces the header of `file`, which is flushed before and after. A crash leaves the old header or the new one: what
// lies behind the first sector is written first, to bytes that the old header does not need, and then the sector. Only
// extensions that change on both sides of the end of the sector go out in one write that a crash can tear, as QEMU's
// do: who changes more than one of them (bitmaps) does it in steps. kInvalidArgument where the header does not fit into
// one cluster.
Result<void> replace_header(BlockDevice& file, const Header& header);

}  // namespace varve::qcow2
