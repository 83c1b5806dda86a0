#include "domain/snapshot_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

namespace varve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SnapshotSummary snapshot(const std::string& name, const std::string& parent, int64_t time = 0, bool current = false) {
  SnapshotSummary summary;
  summary.name = name;
  summary.parent = parent;
  summary.creation_time = time;
  summary.current = current;
  return summary;
}

std::vector<std::string> names(const std::vector<const SnapshotSummary*>& snapshots) {
  std::vector<std::string> result;
  for (const SnapshotSummary* s : snapshots) result.push_back(s->name);
  return result;
}

// base -> { b -> { d -> e, c }, Z }, other
SnapshotTree example() {
  return SnapshotTree({snapshot("other", ""), snapshot("e", "d", 5, true), snapshot("d", "b"), snapshot("c", "b"),
                       snapshot("Z", "base"), snapshot("b", "base"), snapshot("base", "")});
}

TEST(SnapshotTree, AnswersWhoIsWhose) {
  const SnapshotTree tree = example();
  EXPECT_THAT(tree.problems(), IsEmpty());
  EXPECT_EQ(tree.size(), 7U);
  EXPECT_THAT(names(tree.roots()), ElementsAre("base", "other"));
  EXPECT_THAT(names(tree.children("base")), ElementsAre("b", "Z"));
  EXPECT_THAT(names(tree.descendants("base")), ElementsAre("b", "c", "d", "e", "Z"));
  EXPECT_THAT(names(tree.ancestors("e")), ElementsAre("d", "b", "base"));
  EXPECT_THAT(names(tree.topological()), ElementsAre("base", "b", "c", "d", "e", "Z", "other"));
  EXPECT_EQ(tree.parent("c")->name, "b");
  EXPECT_EQ(tree.parent("base"), nullptr);
  EXPECT_EQ(tree.depth("e"), 3U);
  EXPECT_EQ(tree.depth("base"), 0U);
  EXPECT_EQ(tree.current()->name, "e");
  EXPECT_EQ(tree.find("nope"), nullptr);
  EXPECT_THAT(tree.children("nope"), IsEmpty());
  EXPECT_THAT(tree.descendants("nope"), IsEmpty());
  EXPECT_THAT(tree.ancestors("nope"), IsEmpty());
}

// As virsh 9.0 printed it for the same tree.
TEST(SnapshotTree, PrintsTheTreeOfVirsh) {
  EXPECT_THAT(example().tree_lines(),
              ElementsAre("base", "  |", "  +- b", "  |   |", "  |   +- c", "  |   +- d", "  |       |",
                          "  |       +- e", "  |         ", "  +- Z", "    ", "other", ""));
  EXPECT_THAT(SnapshotTree().tree_lines(), IsEmpty());
}

TEST(SnapshotTree, SortsWithoutRegardToCase) {
  const SnapshotTree tree({snapshot("b", ""), snapshot("A", ""), snapshot("a2", ""), snapshot("a10", ""),
                           snapshot("B", ""), snapshot("\xC3\x84", "")});
  EXPECT_THAT(names(tree.roots()), ElementsAre("A", "a10", "a2", "B", "b", "\xC3\x84"));
}

TEST(SnapshotTree, DeletingTheMiddleRelinksItsChildren) {
  const auto deletion = example().after_deleting({"b"});
  ASSERT_EQ(deletion.relinks.size(), 2U);
  EXPECT_EQ(deletion.relinks[0].child, "c");
  EXPECT_EQ(deletion.relinks[0].new_parent, "base");
  EXPECT_EQ(deletion.relinks[1].child, "d");
  EXPECT_FALSE(deletion.current_changes);
  EXPECT_EQ(deletion.new_current, "e");
}

TEST(SnapshotTree, DeletingSeveralOnOnePathSkipsThemAll) {
  const auto deletion = example().after_deleting({"d", "base", "b", "nope"});
  std::vector<std::pair<std::string, std::string>> relinks;
  for (const auto& relink : deletion.relinks) relinks.emplace_back(relink.child, relink.new_parent);
  EXPECT_THAT(relinks,
              ElementsAre(std::pair<std::string, std::string>{"c", ""}, std::pair<std::string, std::string>{"e", ""},
                          std::pair<std::string, std::string>{"Z", ""}));
}

TEST(SnapshotTree, DeletingTheCurrentMakesItsAncestorCurrent) {
  const SnapshotTree tree = example();
  EXPECT_TRUE(tree.after_deleting({"e"}).current_changes);
  EXPECT_EQ(tree.after_deleting({"e"}).new_current, "d");
  EXPECT_EQ(tree.after_deleting({"e", "d", "b", "c"}).new_current, "base");
  EXPECT_EQ(tree.after_deleting({"e", "d", "b", "c", "Z", "base"}).new_current, "");
  EXPECT_FALSE(tree.after_deleting({}).current_changes);
}

TEST(SnapshotTree, AMissingParentMakesARoot) {
  const SnapshotTree tree({snapshot("a", "gone"), snapshot("b", "a")});
  EXPECT_THAT(names(tree.roots()), ElementsAre("a"));
  ASSERT_EQ(tree.problems().size(), 1U);
  EXPECT_THAT(tree.problems()[0], HasSubstr("'a' names a parent 'gone'"));
}

TEST(SnapshotTree, ACycleIsCutAtItsOldest) {
  const SnapshotTree tree({snapshot("a", "c", 3), snapshot("b", "a", 1), snapshot("c", "b", 2), snapshot("d", "a", 9),
                           snapshot("self", "self", 1)});
  EXPECT_THAT(names(tree.roots()), ElementsAre("b", "self"));
  EXPECT_THAT(names(tree.descendants("b")), ElementsAre("c", "a", "d"));
  EXPECT_EQ(tree.topological().size(), 5U);
  ASSERT_EQ(tree.problems().size(), 2U);
  EXPECT_THAT(tree.problems()[0], HasSubstr("'b' is its own ancestor"));
  EXPECT_THAT(tree.problems()[1], HasSubstr("'self'"));
}

TEST(SnapshotTree, DoubtfulNamesAndCurrentsAreReported) {
  const SnapshotTree tree({snapshot("a", "", 1, true), snapshot("b", "", 2, true), snapshot("a", "b", 3)});
  EXPECT_EQ(tree.size(), 2U);
  EXPECT_EQ(tree.current()->name, "a");
  EXPECT_EQ(tree.find("a")->creation_time, 1);
  EXPECT_EQ(tree.problems().size(), 2U);
}

TEST(SnapshotTree, TenThousandSnapshotsAreQuick) {
  constexpr size_t kCount = 10000;
  // The worst shapes: one chain, one flat row, and something random with edits by hand.
  std::mt19937 random(7);
  for (const int shape : {0, 1, 2}) {
    std::vector<SnapshotSummary> all;
    for (size_t i = 0; i < kCount; ++i) {
      const size_t parent = shape == 0 ? i - 1 : shape == 1 ? 0 : random() % kCount;
      all.push_back(snapshot("s" + std::to_string(i), i == 0 ? "" : "s" + std::to_string(parent), 0, i + 1 == kCount));
    }
    const auto start = std::chrono::steady_clock::now();
    const SnapshotTree tree(all);
    EXPECT_EQ(tree.topological().size(), kCount);
    std::vector<std::string> every_second;
    for (size_t i = 1; i < kCount; i += 2) every_second.push_back("s" + std::to_string(i));
    const auto deletion = tree.after_deleting(every_second);
    EXPECT_TRUE(deletion.current_changes);
    size_t lines = 0;
    if (shape != 0) tree.for_each_tree_line([&](std::string_view) { ++lines; });
    EXPECT_EQ(lines >= kCount, shape != 0);
    if (shape == 0) {
      EXPECT_EQ(tree.depth("s9999"), kCount - 1);
      EXPECT_EQ(tree.descendants("s0").size(), kCount - 1);
      EXPECT_EQ(deletion.relinks.size(), kCount / 2 - 1);
      EXPECT_EQ(deletion.new_current, "s9998");
    }
    // Tens of milliseconds; anything quadratic takes many seconds.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3)) << "shape " << shape;
  }
}

}  // namespace
}  // namespace varve
