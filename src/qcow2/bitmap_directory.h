// Persistent dirty bitmaps (qcow2 specification, "Bitmaps extension"), as far as snapshots concern them: which clusters
// they occupy.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "qcow2/header.h"

namespace varve::qcow2 {

// Every cluster that the directory, the bitmap tables and the bitmaps' data take: {first cluster, count}, one reference
// each. `bitmaps` is header.bitmaps, already checked for its range. kCorrupt where the directory or a table breaks the
// format.
Result<std::vector<std::pair<uint64_t, uint64_t>>> bitmap_clusters(BlockDevice& file, const Header& header,
                                                                   const BitmapsExtension& bitmaps);

}  // namespace varve::qcow2
