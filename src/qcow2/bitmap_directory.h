// The directory of persistent dirty bitmaps (qcow2 specification, "Bitmaps extension" and "Bitmap directory"): their
// names and properties, and which clusters they occupy. Their contents: qcow2/dirty_bitmaps.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
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
  uint32_t other_flags = 0;           // that this version does not know; kept
  std::vector<std::byte> extra_data;  // the same
};

// In the directory's order. `bitmaps` is header.bitmaps, already checked for its range. kCorrupt where the directory
// breaks the format.
Result<std::vector<Bitmap>> read_bitmap_directory(BlockDevice& file, const Header& header,
                                                  const BitmapsExtension& bitmaps);

// {first cluster, count}, one reference each.
using ClusterRuns = std::vector<std::pair<uint64_t, uint64_t>>;

// Every cluster that one bitmap's table and data take. kCorrupt where the table breaks the format.
Result<ClusterRuns> clusters_of(BlockDevice& file, const Header& header, const Bitmap& bitmap);

// Every cluster that the directory, the bitmap tables and the bitmaps' data take. kCorrupt where the directory or a
// table breaks the format.
Result<ClusterRuns> bitmap_clusters(BlockDevice& file, const Header& header, const BitmapsExtension& bitmaps);

// The directory's bytes, for bitmaps whose tables are where they say.
std::vector<std::byte> serialize_bitmap_directory(std::span<const Bitmap> bitmaps);

}  // namespace varve::qcow2
