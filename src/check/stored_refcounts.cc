#include "check/stored_refcounts.h"

#include <algorithm>

namespace varve::check {

Result<StoredRefcounts> StoredRefcounts::load(const ImageFile& file, const Layout& layout, uint64_t clusters) {
  StoredRefcounts stored(layout, clusters);
  stored.table_ = TRY(file.read_words(layout.refcount_table_offset, layout.refcount_table_entries()));
  stored.load_blocks(file, 0);
  return stored;
}

void StoredRefcounts::load_blocks(const ImageFile& file, uint64_t first) {
  const uint64_t block_bytes = layout_->cluster_size();
  for (uint64_t i = first; i < std::min<uint64_t>(counts_.blocks(), table_.size());) {
    const uint64_t offset = table_[i] & kBlockOffsetMask;
    if (offset == 0) {
      ++i;
      continue;
    }
    // Blocks that lie one behind the other are one read.
    uint64_t end = i + 1;
    while (end < std::min<uint64_t>(counts_.blocks(), table_.size()) &&
           (table_[end] & kBlockOffsetMask) == offset + (end - i) * block_bytes) {
      ++end;
    }
    const auto room = counts_.bytes().subspan(i * block_bytes, (end - i) * block_bytes);
    if (!layout_->is_aligned(offset) || !file.read(offset, room)) {
      end = i + 1;  // one at a time, to know which
      const auto block = room.first(block_bytes);
      if (!layout_->is_aligned(offset) || !file.read(offset, block)) {
        std::ranges::fill(block, std::byte{0});
        broken_.push_back(i);
      }
    }
    i = end;
  }
}

bool StoredRefcounts::is_readable(uint64_t cluster) const {
  return !std::ranges::binary_search(broken_, block_of(cluster));
}

bool StoredRefcounts::is_misaligned(uint64_t cluster) const {
  const uint64_t block = block_of(cluster);
  return block < table_.size() && !layout_->is_aligned(table_[block] & kBlockOffsetMask);
}

std::optional<uint64_t> StoredRefcounts::get(const ImageFile& file, uint64_t cluster) const {
  const uint64_t block = block_of(cluster);
  if (block < counts_.blocks()) {
    if (!is_readable(cluster)) return std::nullopt;
    if (cluster < counts_.clusters()) return counts_.get(cluster);
    return with_order(counts_.order(),
                      [&](auto order) { return PackedRefcount<order>::get(counts_.bytes().data(), cluster); });
  }
  if (block >= table_.size()) return 0;
  const uint64_t offset = table_[block] & kBlockOffsetMask;
  if (offset == 0) return 0;
  if (!layout_->is_aligned(offset)) return std::nullopt;
  std::vector<std::byte> bytes(layout_->cluster_size());
  if (!file.read(offset, bytes)) return std::nullopt;
  return with_order(counts_.order(), [&](auto order) {
    return PackedRefcount<order>::get(bytes.data(), cluster % layout_->refcounts_per_block());
  });
}

Result<void> StoredRefcounts::grow(const ImageFile& file, uint64_t clusters) {
  const uint64_t before = counts_.blocks();
  counts_.grow(clusters);
  load_blocks(file, before);
  return {};
}

void StoredRefcounts::replace(std::vector<uint64_t> table, RefcountArray counts) {
  table_ = std::move(table);
  broken_.clear();
  counts_ = std::move(counts);
}

}  // namespace varve::check
