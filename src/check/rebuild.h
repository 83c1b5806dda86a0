// A refcount structure made anew from what was counted.
#pragma once

#include <optional>

#include "check/references.h"

namespace varve::check {

struct NewStructure {
  std::vector<uint64_t> blocks;  // the refcount table; 0: no block
  uint64_t table_offset = 0;
  uint32_t table_clusters = 0;
};

// Finds room for a refcount table and blocks that hold `counts`, in clusters that `counts` says are free or behind the
// end, and counts them. Where QEMU puts them, this puts them. Nothing where the table would be larger than an image may
// have.
std::optional<NewStructure> place_structure(RefcountArray& counts, const Layout& layout);

// The first of `clusters` free neighbours, from `first` on, now counted; grows `counts` where there is no room.
uint64_t allocate_clusters(RefcountArray& counts, uint64_t clusters, uint64_t first);

}  // namespace varve::check
