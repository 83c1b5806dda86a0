#include "check/rebuild.h"

#include <algorithm>

#include "base/checked.h"

namespace varve::check {

namespace {

class Placer {
 public:
  Placer(RefcountArray& counts, const Layout& layout) : counts_(counts), layout_(layout) {}

  std::optional<NewStructure> run() {
    bool grown = cover(0, counts_.clusters());
    // The table's own clusters have refcounts too, whose block may make the table grow. What an earlier attempt took
    // stays taken: it is far less than a block's worth.
    while (grown) {
      if (made_.blocks.size() * 8 > kMaxRefcountTableBytes) return std::nullopt;
      const uint64_t clusters = made_.blocks.size() * 8 >> layout_.cluster_bits;
      const uint64_t first = allocate_clusters(counts_, clusters, 0);
      made_.table_offset = first << layout_.cluster_bits;
      made_.table_clusters = static_cast<uint32_t>(clusters);
      grown = cover(first, first + clusters);
    }
    return std::move(made_);
  }

 private:
  // Every counted cluster of the range gets a block that holds its refcount. True where the table had to grow.
  bool cover(uint64_t first, uint64_t end) {
    const uint64_t per_block = layout_.refcounts_per_block();
    const uint64_t per_table_cluster = layout_.cluster_size() / 8;
    bool grown = false;
    uint64_t free_from = 0;
    for (uint64_t cluster = first; (cluster = counts_.first_counted(cluster, end)) < end;) {
      const uint64_t block = cluster / per_block;
      if (block >= made_.blocks.size() || made_.blocks[block] == 0) {
        // Never in a block's range that is already complete.
        free_from = std::max(free_from, block * per_block);
        const uint64_t at = allocate_clusters(counts_, 1, free_from);
        free_from = at;
        end = std::max(end, at + 1);
        if (block >= made_.blocks.size()) {
          made_.blocks.resize(align_up(block + 1, per_table_cluster));
          grown = true;
        }
        made_.blocks[block] = at << layout_.cluster_bits;
      }
      cluster = (block + 1) * per_block;
    }
    return grown;
  }

  RefcountArray& counts_;
  const Layout& layout_;
  NewStructure made_;
};

}  // namespace

uint64_t allocate_clusters(RefcountArray& counts, uint64_t clusters, uint64_t first) {
  uint64_t run = 0;
  uint64_t cluster = first;
  while (cluster < counts.clusters() && run < clusters) {
    run = counts.get(cluster) == 0 ? run + 1 : 0;
    ++cluster;
  }
  const uint64_t start = cluster - run;
  counts.grow(start + clusters);
  for (uint64_t i = start; i < start + clusters; ++i) counts.set(i, 1);
  return start;
}

std::optional<NewStructure> place_structure(RefcountArray& counts, const Layout& layout) {
  return Placer(counts, layout).run();
}

}  // namespace varve::check
