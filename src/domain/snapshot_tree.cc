#include "domain/snapshot_tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace varve {

namespace {

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

// virsh sorts without regard to ASCII case; where that leaves two equal, the bytes decide, so that a list is stable.
bool comes_before(const SnapshotSummary& a, const SnapshotSummary& b) {
  const auto less = [](char x, char y) {
    return static_cast<unsigned char>(lower(x)) < static_cast<unsigned char>(lower(y));
  };
  if (std::lexicographical_compare(a.name.begin(), a.name.end(), b.name.begin(), b.name.end(), less)) return true;
  if (std::lexicographical_compare(b.name.begin(), b.name.end(), a.name.begin(), a.name.end(), less)) return false;
  return a.name < b.name;
}

}  // namespace

SnapshotTree::SnapshotTree(std::vector<SnapshotSummary> snapshots) {
  sort_and_name(std::move(snapshots));
  link();
  cut_cycles();
  children_.resize(snapshots_.size());
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    if (parent_[i] == kNone) {
      roots_.push_back(i);
    } else {
      children_[parent_[i]].push_back(i);
    }
  }
}

void SnapshotTree::sort_and_name(std::vector<SnapshotSummary> snapshots) {
  std::vector<size_t> order(snapshots.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (snapshots[a].name == snapshots[b].name) return a < b;
    return comes_before(snapshots[a], snapshots[b]);
  });
  snapshots_.reserve(snapshots.size());
  for (const size_t i : order) {
    SnapshotSummary& snapshot = snapshots[i];
    if (!snapshots_.empty() && snapshots_.back().name == snapshot.name) {
      problems_.push_back(fmt::format("two snapshots are called '{}'; the second is left out", snapshot.name));
      continue;
    }
    by_name_.emplace(snapshot.name, snapshots_.size());
    snapshots_.push_back(std::move(snapshot));
  }
}

void SnapshotTree::link() {
  parent_.assign(snapshots_.size(), kNone);
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    const SnapshotSummary& snapshot = snapshots_[i];
    if (snapshot.current) {
      if (current_ == kNone) {
        current_ = i;
      } else {
        problems_.push_back(fmt::format("snapshots '{}' and '{}' are both marked as current; '{}' counts",
                                        snapshots_[current_].name, snapshot.name, snapshots_[current_].name));
      }
    }
    if (snapshot.parent.empty()) continue;
    parent_[i] = index_of(snapshot.parent);
    if (parent_[i] == kNone) {
      problems_.push_back(
          fmt::format("snapshot '{}' names a parent '{}' that does not exist", snapshot.name, snapshot.parent));
    }
  }
}

// Follows parents from every snapshot not seen before; meeting a member of the path just walked closes a cycle.
void SnapshotTree::cut_cycles() {
  std::vector<size_t> seen_from(snapshots_.size(), kNone);
  for (size_t start = 0; start < snapshots_.size(); ++start) {
    size_t at = start;
    while (at != kNone && seen_from[at] == kNone) {
      seen_from[at] = start;
      at = parent_[at];
    }
    if (at == kNone || seen_from[at] != start) continue;
    size_t oldest = at;
    for (size_t i = parent_[at]; i != at; i = parent_[i]) {
      if (snapshots_[i].creation_time < snapshots_[oldest].creation_time) oldest = i;
    }
    problems_.push_back(fmt::format("snapshot '{}' is its own ancestor through its parent '{}'; it is taken for a root",
                                    snapshots_[oldest].name, snapshots_[oldest].parent));
    parent_[oldest] = kNone;
  }
}

size_t SnapshotTree::index_of(std::string_view name) const {
  const auto at = by_name_.find(std::string(name));
  return at == by_name_.end() ? kNone : at->second;
}

std::vector<const SnapshotSummary*> SnapshotTree::pointers(const std::vector<size_t>& indexes) const {
  std::vector<const SnapshotSummary*> result;
  result.reserve(indexes.size());
  for (const size_t i : indexes) result.push_back(&snapshots_[i]);
  return result;
}

std::vector<size_t> SnapshotTree::preorder(const std::vector<size_t>& from) const {
  std::vector<size_t> order;
  std::vector<size_t> open(from.rbegin(), from.rend());
  while (!open.empty()) {
    const size_t at = open.back();
    open.pop_back();
    order.push_back(at);
    open.insert(open.end(), children_[at].rbegin(), children_[at].rend());
  }
  return order;
}

const SnapshotSummary* SnapshotTree::find(std::string_view name) const {
  const size_t at = index_of(name);
  return at == kNone ? nullptr : &snapshots_[at];
}

const SnapshotSummary* SnapshotTree::current() const {
  return current_ == kNone ? nullptr : &snapshots_[current_];
}

const SnapshotSummary* SnapshotTree::parent(std::string_view name) const {
  const size_t at = index_of(name);
  return at == kNone || parent_[at] == kNone ? nullptr : &snapshots_[parent_[at]];
}

std::vector<const SnapshotSummary*> SnapshotTree::roots() const {
  return pointers(roots_);
}

std::vector<const SnapshotSummary*> SnapshotTree::children(std::string_view name) const {
  const size_t at = index_of(name);
  if (at == kNone) return {};
  return pointers(children_[at]);
}

std::vector<const SnapshotSummary*> SnapshotTree::descendants(std::string_view name) const {
  const size_t at = index_of(name);
  if (at == kNone) return {};
  return pointers(preorder(children_[at]));
}

std::vector<const SnapshotSummary*> SnapshotTree::ancestors(std::string_view name) const {
  std::vector<size_t> found;
  size_t at = index_of(name);
  if (at == kNone) return {};
  for (at = parent_[at]; at != kNone; at = parent_[at]) found.push_back(at);
  return pointers(found);
}

std::vector<const SnapshotSummary*> SnapshotTree::topological() const {
  return pointers(preorder(roots_));
}

size_t SnapshotTree::depth(std::string_view name) const {
  size_t depth = 0;
  size_t at = index_of(name);
  if (at == kNone) return 0;
  for (at = parent_[at]; at != kNone; at = parent_[at]) ++depth;
  return depth;
}

SnapshotTree::Deletion SnapshotTree::after_deleting(const std::vector<std::string>& names) const {
  std::vector<bool> deleted(snapshots_.size(), false);
  for (const std::string& name : names) {
    const size_t at = index_of(name);
    if (at != kNone) deleted[at] = true;
  }
  Deletion result;
  if (current_ != kNone) result.new_current = snapshots_[current_].name;
  // The nearest ancestor that stays; parents come before children, so one step up is enough.
  std::vector<size_t> survivor(snapshots_.size(), kNone);
  for (const size_t at : preorder(roots_)) {
    const size_t parent = parent_[at];
    survivor[at] = parent == kNone || !deleted[parent] ? parent : survivor[parent];
    if (!deleted[at] && survivor[at] != parent) {
      result.relinks.push_back({snapshots_[at].name, survivor[at] == kNone ? "" : snapshots_[survivor[at]].name});
    }
    if (deleted[at] && at == current_) {
      result.current_changes = true;
      result.new_current = survivor[at] == kNone ? "" : snapshots_[survivor[at]].name;
    }
  }
  return result;
}

void SnapshotTree::for_each_tree_line(const std::function<void(std::string_view)>& print) const {
  // What virsh's output follows from: every level below a root is four columns; a bar runs down from a snapshot to its
  // last child; the last child of its parent, if it has no children itself, is followed by a line of indentation.
  struct Open {
    size_t at;
    size_t next_child;
  };
  std::string indent;
  std::string line;
  std::vector<Open> open;
  const auto enter = [&](size_t at, bool is_root, bool is_last) {
    line = indent;
    if (!is_root) line += "+- ";
    print(line += snapshots_[at].name);
    if (!is_root) indent += is_last ? "  " : "| ";
    if (!children_[at].empty()) {
      print(line = indent + "  |");
    } else if (is_last) {
      print(indent);
    }
    indent += "  ";
    open.push_back({at, 0});
  };
  for (const size_t root : roots_) {
    indent.clear();
    enter(root, true, true);
    while (!open.empty()) {
      const size_t at = open.back().at;
      const size_t next = open.back().next_child++;
      if (next < children_[at].size()) {
        enter(children_[at][next], false, next + 1 == children_[at].size());
        continue;
      }
      open.pop_back();
      indent.resize(indent.size() - (open.empty() ? 2 : 4));
    }
  }
}

std::vector<std::string> SnapshotTree::tree_lines() const {
  std::vector<std::string> lines;
  for_each_tree_line([&](std::string_view line) { lines.emplace_back(line); });
  return lines;
}

}  // namespace varve
