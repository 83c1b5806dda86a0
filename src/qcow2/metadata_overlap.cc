// Writes never go to metadata that is in use, whatever an image's entries and refcounts say.
#include <fmt/format.h>

#include "base/checked.h"
#include "qcow2/corruption.h"
#include "qcow2/image_writer.h"

namespace varve::qcow2 {
namespace {

ClusterIntervals places_of_metadata(const Header& header, std::span<const uint64_t> l1, Refcounts& refcounts) {
  const uint64_t cluster_size = header.cluster_size();
  ClusterIntervals places;
  const auto add = [&](uint64_t offset, uint64_t bytes) {
    if (offset != 0 && bytes != 0)
      places.insert(offset / cluster_size, div_round_up(offset % cluster_size + bytes, cluster_size));
  };
  places.insert(0, 1);
  add(header.l1_table_offset, uint64_t{header.l1_size} * 8);
  add(header.refcount_table_offset, uint64_t{header.refcount_table_clusters} * cluster_size);
  add(refcounts.table_offset(), uint64_t{refcounts.table_clusters()} * cluster_size);
  for (const uint64_t block : refcounts.table()) add(block, cluster_size);
  for (const uint64_t entry : l1) add(entry & kOffsetMask, cluster_size);
  if (header.nb_snapshots != 0) add(header.snapshots_offset, 1);
  if (header.bitmaps) add(header.bitmaps->directory_offset, header.bitmaps->directory_size);
  return places;
}

}  // namespace

Result<void> ImageWriter::check_no_metadata(uint64_t first_cluster, uint64_t count) {
  if (!metadata_) metadata_ = places_of_metadata(header_, mapping_.l1(), refcounts_);
  if (!metadata_->overlaps(first_cluster, count)) return {};
  return corruption(file_.name(), first_cluster * cluster_size(),
                    fmt::format("{} cluster(s) at offset {:#x} would be written to or given away, but metadata lies "
                                "there",
                                count, first_cluster * cluster_size()))
      .with_note(fmt::format("the image is damaged; `image check {}` says how. Copy the file before it is repaired",
                             file_.name()));
}

}  // namespace varve::qcow2
