// The snapshots of one domain as a tree. Built once from summaries; every question is answered without a walk over the
// whole, so that tens of thousands are fine. Metadata comes from files that anybody may have edited: a missing parent
// makes a root, a cycle is cut at its oldest member, of two snapshots of a name the first stays, of several current
// ones the first by name counts; problems() says all of it.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "domain/snapshot_document.h"

namespace varve {

class SnapshotTree {
 public:
  explicit SnapshotTree(std::vector<SnapshotSummary> snapshots = {});

  bool empty() const { return snapshots_.empty(); }
  size_t size() const { return snapshots_.size(); }
  // Sorted by name as virsh does (without regard to case).
  const std::vector<SnapshotSummary>& snapshots() const { return snapshots_; }
  // One line each, e.g. "snapshot 'b' names a parent 'a' that does not exist". Empty: all is well.
  const std::vector<std::string>& problems() const { return problems_; }

  // All of these give nullptr or an empty list for a name that is not there. Pointers live as long as the tree.
  const SnapshotSummary* find(std::string_view name) const;
  const SnapshotSummary* current() const;  // the first one marked, if several are
  const SnapshotSummary* parent(std::string_view name) const;
  std::vector<const SnapshotSummary*> roots() const;
  std::vector<const SnapshotSummary*> children(std::string_view name) const;
  std::vector<const SnapshotSummary*> descendants(std::string_view name) const;  // parents before children
  std::vector<const SnapshotSummary*> ancestors(std::string_view name) const;    // nearest first
  std::vector<const SnapshotSummary*> topological() const;                       // parents before children
  size_t depth(std::string_view name) const;                                     // 0 for a root

  // What deleting these snapshots does to those that stay: each surviving child of a deleted one gets the nearest
  // surviving ancestor (empty: becomes a root); and which one is current then (empty: none), as libvirt does it: the
  // nearest surviving ancestor of a deleted current one.
  struct Relink {
    std::string child;
    std::string new_parent;
  };
  struct Deletion {
    std::vector<Relink> relinks;
    std::string new_current;
    bool current_changes = false;
  };
  Deletion after_deleting(const std::vector<std::string>& names) const;

  // The lines that `virsh snapshot-list --tree` prints, without the empty one at its end. A long chain has long lines
  // (10,000 snapshots below each other: 800 MB in all), so print them one by one where there may be many.
  void for_each_tree_line(const std::function<void(std::string_view)>& print) const;
  std::vector<std::string> tree_lines() const;

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);
  size_t index_of(std::string_view name) const;
  std::vector<const SnapshotSummary*> pointers(const std::vector<size_t>& indexes) const;
  std::vector<size_t> preorder(const std::vector<size_t>& from) const;  // includes `from`
  void sort_and_name(std::vector<SnapshotSummary> snapshots);
  void link();
  void cut_cycles();

  std::vector<SnapshotSummary> snapshots_;
  std::unordered_map<std::string, size_t> by_name_;
  std::vector<size_t> parent_;                 // kNone: a root
  std::vector<std::vector<size_t>> children_;  // in the order of snapshots_
  std::vector<size_t> roots_;
  size_t current_ = kNone;
  std::vector<std::string> problems_;
};

}  // namespace varve
