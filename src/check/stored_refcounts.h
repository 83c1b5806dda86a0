// The refcounts as the image has them: the refcount table and all refcount blocks, read in one pass.
#pragma once

#include <optional>
#include <vector>

#include "check/layout.h"
#include "check/refcount_array.h"

namespace varve::check {

class StoredRefcounts {
 public:
  // For the clusters [0, clusters). A refcount table that can't be read is an error, a block that can't isn't.
  static Result<StoredRefcounts> load(const ImageFile& file, const Layout& layout, uint64_t clusters);

  const std::vector<uint64_t>& table() const { return table_; }
  RefcountArray& counts() { return counts_; }
  const RefcountArray& counts() const { return counts_; }
  // The index of the block that holds this cluster's refcount where it can't be read; QEMU says why for the first one.
  bool is_readable(uint64_t cluster) const;
  bool is_misaligned(uint64_t cluster) const;
  bool all_readable() const { return broken_.empty(); }
  // Any cluster, also behind the end of the file; nothing where it can't be read.
  std::optional<uint64_t> get(const ImageFile& file, uint64_t cluster) const;
  // Reads blocks that a larger file makes reachable.
  Result<void> grow(const ImageFile& file, uint64_t clusters);
  // A structure that is to be written takes the place of what was read.
  void replace(std::vector<uint64_t> table, RefcountArray counts);

 private:
  StoredRefcounts(const Layout& layout, uint64_t clusters)
      : layout_(&layout), counts_(layout.refcount_order, layout.cluster_size(), clusters) {}
  void load_blocks(const ImageFile& file, uint64_t first);
  uint64_t block_of(uint64_t cluster) const { return cluster / layout_->refcounts_per_block(); }

  const Layout* layout_;
  std::vector<uint64_t> table_;
  std::vector<uint64_t> broken_;  // indices, ascending
  RefcountArray counts_;
};

}  // namespace varve::check
