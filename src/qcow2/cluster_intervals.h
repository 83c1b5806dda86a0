// A set of clusters as intervals: for sets that grow and shrink by long runs, whatever their clusters are numbered.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace varve::qcow2 {

class ClusterIntervals {
 public:
  bool empty() const { return ends_.empty(); }

  void insert(uint64_t first, uint64_t count) {
    uint64_t end = first + count;
    auto at = ends_.upper_bound(first);
    if (at != ends_.begin() && std::prev(at)->second >= first) {
      --at;
      first = at->first;
    }
    while (at != ends_.end() && at->first <= end) {
      if (at->second > end) end = at->second;
      at = ends_.erase(at);
    }
    ends_.emplace(first, end);
  }

  void erase(uint64_t first, uint64_t count) {
    const uint64_t end = first + count;
    auto at = ends_.upper_bound(first);
    if (at != ends_.begin() && std::prev(at)->second > first) --at;
    while (at != ends_.end() && at->first < end) {
      const auto [old_first, old_end] = *at;
      at = ends_.erase(at);
      if (old_first < first) ends_.emplace(old_first, first);
      if (old_end > end) ends_.emplace(end, old_end);
    }
  }

  bool overlaps(uint64_t first, uint64_t count) const {
    const auto at = ends_.lower_bound(first + count);  // begins behind the range
    return at != ends_.begin() && std::prev(at)->second > first;
  }

  // All intervals, {first, behind the last}, in order; the set is empty then.
  std::map<uint64_t, uint64_t> take() { return std::exchange(ends_, {}); }

 private:
  std::map<uint64_t, uint64_t> ends_;  // first cluster -> behind the last; none touches another
};

}  // namespace varve::qcow2
