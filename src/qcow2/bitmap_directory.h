// Persistent dirty bitmaps (qcow2 specification, "Bitmaps extension" and "Bitmap directory"), as far as snapshots and
// `image info` are concerned with them: their names and properties, and which clusters they occupy. Not their contents.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "qcow2/header.h"

namespace varve::qcow2 {

struct Bitmap {
  std::string name;  // anything but empty
  uint64_t table_offset = 0;
  uint64_t table_entries = 0;
  bool in_use = false;     // was not saved cleanly: what it says can't be trusted
  bool automatic = false;  // records writes as soon as the image is open for writing
  uint64_t granularity = 0;
};

// In the directory's order. `bitmaps` is header.bitmaps, already checked for its range. kCorrupt where the directory
// breaks the format.
Result<std::vector<Bitmap>> read_bitmap_directory(BlockDevice& file, const Header& header,
                                                  const BitmapsExtension& bitmaps);

// Every cluster that the directory, the bitmap tables and the bitmaps' data take: {first cluster, count}, one reference
// each. kCorrupt where the directory or a table breaks the format.
Result<std::vector<std::pair<uint64_t, uint64_t>>> bitmap_clusters(BlockDevice& file, const Header& header,
                                                                   const BitmapsExtension& bitmaps);

}  // namespace varve::qcow2
