#include "check/check.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "check/rebuild.h"
#include "io/memory_device.h"
#include "support/image_bytes.h"

namespace varve::check {
namespace {

using test::poke;

constexpr uint64_t kCluster = 512;

// A v3 image of clusters of 512 bytes, made by hand: header, refcount table, refcount block, L1 table, L2 table, data.
class HandMade {
 public:
  explicit HandMade(unsigned refcount_order = 4) : order_(refcount_order) {
    set<uint32_t>(0, 0x514649fb);
    set<uint32_t>(4, 3);
    set<uint32_t>(20, 9);
    set<uint64_t>(24, 64 * kCluster);
    set<uint32_t>(36, 1);
    set<uint64_t>(40, kL1);
    set<uint64_t>(48, kTable);
    set<uint32_t>(56, 1);
    set<uint32_t>(96, order_);
    set<uint32_t>(100, 104);
    set<uint64_t>(kTable, kBlock);
    set<uint64_t>(kL1, kL2 | kCopied);
    for (uint64_t i = 0; i < 3; ++i) set<uint64_t>(kL2 + 8 * i, (kData + i * kCluster) | kCopied);
    for (uint64_t i = 0; i < 8; ++i) refcount(i, 1);
    CHECK(disk.write_zeroes(8 * kCluster - 1, 1, ZeroMode::kMayUnmap));
    CHECK(disk.resize(8 * kCluster));
  }
  template <typename T>
  void set(uint64_t at, T value) {
    poke<T>(disk, at, value);
  }
  template <typename T>
  T get(uint64_t at) {
    std::array<std::byte, sizeof(T)> raw{};
    CHECK(disk.read_at(at, raw));
    return load_be<T>(raw.data());
  }
  void refcount(uint64_t cluster, uint64_t value) {
    std::array<std::byte, kCluster> block{};
    CHECK(disk.size() && *disk.size() >= kBlock + kCluster ? disk.read_at(kBlock, block).has_value() : true);
    with_order(order_, [&](auto order) { PackedRefcount<order>::set(block.data(), cluster, value); });
    CHECK(disk.write_at(kBlock, block));
  }

  CheckResult check(Repair repair = Repair::kNone) {
    lines.clear();
    const Report report{.line = [&](const std::string& line) { lines.push_back(line); },
                        .error = [&](const std::string& line) { lines.push_back("error: " + line); }};
    const Result<CheckResult> result = check_image(disk, {.repair = repair}, report);
    EXPECT_TRUE(result) << result.error().message;
    return result ? *result : CheckResult{};
  }
  void expect_clean() {
    const CheckResult result = check();
    EXPECT_EQ(result.tally.corruptions + result.tally.leaks + result.tally.check_errors, 0);
    EXPECT_TRUE(lines.empty()) << lines.front();
  }

  static constexpr uint64_t kTable = 1 * kCluster;
  static constexpr uint64_t kBlock = 2 * kCluster;
  static constexpr uint64_t kL1 = 3 * kCluster;
  static constexpr uint64_t kL2 = 4 * kCluster;
  static constexpr uint64_t kData = 5 * kCluster;

  MemoryDevice disk{"hand-made.qcow2"};
  std::vector<std::string> lines;

 private:
  unsigned order_;
};

TEST(Check, FindsNothingInASoundImageOfEveryRefcountWidth) {
  for (unsigned order = 0; order <= 6; ++order) {
    SCOPED_TRACE(order);
    HandMade image(order);
    image.expect_clean();
    const CheckResult result = image.check();
    EXPECT_EQ(result.allocation.image_end, 8 * kCluster);
    EXPECT_EQ(result.allocation.total, 64u);
    EXPECT_EQ(result.allocation.allocated, 3u);
    EXPECT_EQ(result.allocation.fragmented, 0u);
  }
}

TEST(Check, CountsWhatIsFragmented) {
  HandMade image;
  image.set<uint64_t>(HandMade::kL2, (HandMade::kData + kCluster) | kCopied);
  image.set<uint64_t>(HandMade::kL2 + 8, HandMade::kData | kCopied);
  EXPECT_EQ(image.check().allocation.fragmented, 2u);
}

TEST(Check, LowersTheRefcountOfALeak) {
  HandMade image;
  image.set<uint64_t>(HandMade::kL2 + 16, 0);
  CheckResult result = image.check();
  EXPECT_EQ(result.tally.leaks, 1);
  EXPECT_EQ(image.lines, std::vector<std::string>{"Leaked cluster 7 refcount=1 reference=0"});
  result = image.check(Repair::kLeaks);
  EXPECT_EQ(result.tally.leaks, 0);
  EXPECT_EQ(result.tally.leaks_fixed, 1);
  image.expect_clean();
}

TEST(Check, RaisesARefcountAndTakesTheCopiedFlagsAway) {
  HandMade image;
  image.set<uint64_t>(HandMade::kL2 + 16, HandMade::kData | kCopied);
  image.refcount(7, 0);
  EXPECT_EQ(image.check(Repair::kLeaks).tally.corruptions, 1);
  const CheckResult result = image.check(Repair::kAll);
  EXPECT_EQ(result.tally.corruptions_fixed, 3);
  EXPECT_EQ(image.get<uint64_t>(HandMade::kL2), HandMade::kData);
  EXPECT_EQ(image.get<uint64_t>(HandMade::kL2 + 16), HandMade::kData);
  EXPECT_EQ(image.get<uint16_t>(HandMade::kBlock + 10), 2u);
  image.expect_clean();
}

TEST(Check, RebuildsALostRefcountStructure) {
  for (unsigned order = 0; order <= 6; ++order) {
    SCOPED_TRACE(order);
    HandMade image(order);
    image.set<uint64_t>(HandMade::kTable, 0);
    EXPECT_EQ(image.check(Repair::kLeaks).tally.error, EIO);
    const CheckResult result = image.check(Repair::kAll);
    EXPECT_EQ(result.tally.corruptions, 0);
    EXPECT_GT(result.tally.corruptions_fixed, 0);
    image.expect_clean();
    EXPECT_EQ(image.get<uint64_t>(HandMade::kL2), HandMade::kData | kCopied);
  }
}

TEST(Check, ChangesNothingWhereItEndsEarly) {
  HandMade image;
  image.set<uint64_t>(HandMade::kL2 + 16, 0);
  image.set<uint32_t>(60, 1);                 // a snapshot,
  image.set<uint64_t>(64, 6 * kCluster + 1);  // whose table is nowhere
  const auto before = test::contents(image.disk);
  EXPECT_EQ(image.check(Repair::kLeaks).tally.error, EINVAL);
  EXPECT_EQ(test::contents(image.disk), before);
}

TEST(Check, AsksForNoMoreMemoryThanTheFileHasClusters) {
  HandMade image;
  image.set<uint64_t>(HandMade::kTable + 8, uint64_t{1} << 60);  // a block far behind any end
  const CheckResult result = image.check(Repair::kAll);
  EXPECT_EQ(result.tally.corruptions, 0);
  image.expect_clean();
  EXPECT_LT(*image.disk.size(), uint64_t{1} << 20);
}

TEST(Check, ClearsTheDirtyBitAfterARepairOnly) {
  HandMade image;
  image.set<uint64_t>(kFieldIncompatible, kIncompatibleDirty | kIncompatibleCorrupt);
  image.expect_clean();
  EXPECT_EQ(image.get<uint64_t>(kFieldIncompatible), kIncompatibleDirty | kIncompatibleCorrupt);
  image.check(Repair::kLeaks);
  EXPECT_EQ(image.get<uint64_t>(kFieldIncompatible), 0u);
}

TEST(Check, KeepsTheDirtyBitWhereErrorsRemain) {
  HandMade image;
  image.set<uint64_t>(kFieldIncompatible, kIncompatibleDirty);
  image.set<uint64_t>(HandMade::kL2, (uint64_t{1} << 40) | kCopied);  // data behind the end of the file
  EXPECT_NE(image.check(Repair::kAll).tally.corruptions, 0);
  EXPECT_EQ(image.get<uint64_t>(kFieldIncompatible), kIncompatibleDirty);
}

std::string verdict(HandMade& image) {
  const auto layout = open_layout_for_use(image.disk);
  return layout ? "" : layout.error().message;
}

TEST(Verdict, IsQemusOnWhatOnlyACheckPutsUpWith) {
  HandMade good;
  EXPECT_EQ(verdict(good), "");
  HandMade none;
  none.set<uint32_t>(56, 0);
  EXPECT_EQ(verdict(none), "Image does not contain a reference count table");
  EXPECT_TRUE(open_layout(none.disk));
  HandMade many;
  many.set<uint32_t>(60, 65537);
  EXPECT_EQ(verdict(many), "Snapshot table too large");
  HandMade crooked;
  crooked.set<uint64_t>(64, 8);
  EXPECT_EQ(verdict(crooked), "Snapshot table offset invalid");
  HandMade extra;
  extra.set<uint32_t>(60, 1);
  extra.set<uint64_t>(64, 7 * kCluster);
  extra.set<uint32_t>(7 * kCluster + 36, 1025);
  EXPECT_EQ(verdict(extra),
            "Too much extra metadata in snapshot table entry 0\n"
            "You can force-remove this extra metadata with qemu-img check -r all");
}

TEST(Verdict, NamesUnknownFeaturesInTheOrderOfTheTable) {
  HandMade image;
  image.set<uint64_t>(72, uint64_t{7} << 61);
  EXPECT_EQ(verdict(image), "Unsupported qcow2 feature(s): Unknown incompatible feature: e000000000000000");
  image.set<uint32_t>(104, 0x6803f857);
  image.set<uint32_t>(108, 48 + 4);  // the second name is cut short
  test::poke_bytes(image.disk, 112, std::string_view("\0\x3fzz", 4));
  test::poke_bytes(image.disk, 112 + 48,
                   std::string_view("\0\x3d"
                                    "a\x1b",
                                    4));
  EXPECT_EQ(verdict(image), "Unsupported qcow2 feature(s): zz, a?, Unknown incompatible feature: 4000000000000000");
}

TEST(Verdict, KnowsTheLimitsOfSizeAndEncryption) {
  HandMade image;
  image.set<uint64_t>(24, 64 * kCluster + 1);
  EXPECT_EQ(verdict(image), "L1 table is too small");
  image.set<uint64_t>(24, 64 * kCluster);
  image.set<uint32_t>(32, ~uint32_t{0});
  EXPECT_EQ(verdict(image), "Unsupported encryption method -1");
  image.set<uint32_t>(32, 2);
  EXPECT_EQ(verdict(image), "Missing CRYPTO header for crypt method 2");
}

TEST(RefcountArray, PacksEveryWidthAsABlockDoes) {
  for (unsigned order = 0; order <= 6; ++order) {
    RefcountArray counts(order, kCluster, 100);
    for (uint64_t i = 0; i < 100; ++i) counts.set(i, i & counts.max());
    for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(counts.get(i), i & counts.max());
    EXPECT_EQ(counts.bytes().size() % kCluster, 0u);
    counts.grow(5000);
    EXPECT_EQ(counts.get(99), 99 & counts.max());
    EXPECT_EQ(counts.get(4999), 0u);
  }
  RefcountArray bits(0, kCluster, 16);
  bits.set(1, 1);
  EXPECT_EQ(std::to_integer<int>(bits.bytes()[0]), 2);  // the first one is the lowest bit
}

TEST(RefcountArray, FindsTheFirstAndTheLastCountedCluster) {
  for (unsigned order = 0; order <= 6; ++order) {
    SCOPED_TRACE(order);
    RefcountArray counts(order, kCluster, 1000);
    EXPECT_EQ(counts.first_counted(0, 1000), 1000u);
    EXPECT_EQ(counts.last_counted(0, 1000), 1000u);
    for (const uint64_t cluster : {129u, 130u, 517u, 999u}) counts.set(cluster, 1);
    for (uint64_t from = 0; from < 1000; from += 7) {
      for (const uint64_t end : {from + 1, from + 300, uint64_t{1000}}) {
        uint64_t first = from;
        while (first < end && counts.get(first) == 0) ++first;
        EXPECT_EQ(counts.first_counted(from, end), first) << from << ' ' << end;
        uint64_t last = end;
        for (uint64_t i = from; i < end; ++i)
          if (counts.get(i) != 0) last = i;
        EXPECT_EQ(counts.last_counted(from, end), last) << from << ' ' << end;
      }
    }
  }
}

TEST(Rebuild, PutsTheStructureIntoFreeClustersAndCountsIt) {
  Layout layout;
  layout.cluster_bits = 9;
  RefcountArray counts(4, kCluster, 600);
  for (uint64_t i = 0; i < 600; ++i) counts.set(i, i % 7 == 3 ? 0 : 1);
  const auto structure = place_structure(counts, layout);
  ASSERT_TRUE(structure);
  EXPECT_EQ(structure->table_clusters, 1u);
  EXPECT_EQ(structure->table_offset, 10 * kCluster);  // behind the first block
  EXPECT_EQ(structure->blocks[0], 3 * kCluster);
  EXPECT_EQ(structure->blocks[1], 262 * kCluster);  // in its own range
  EXPECT_EQ(structure->blocks[2], 514 * kCluster);
  EXPECT_EQ(counts.get(10), 1u);
}

}  // namespace
}  // namespace varve::check
