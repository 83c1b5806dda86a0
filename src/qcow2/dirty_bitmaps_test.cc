#include "qcow2/dirty_bitmaps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "support/image_bytes.h"
#include "support/qcow2_scan.h"

namespace varve::qcow2 {
namespace {

using testing::HasSubstr;

DirtyBitmap bitmap(const std::string& name, uint64_t granularity, uint64_t disk_size) {
  auto made = make_bitmap(name, granularity, disk_size, 65536);
  EXPECT_TRUE(made) << made.error().message;
  return *made;
}

TEST(DirtyBitmap, RemembersEveryByteThatWasInserted) {
  std::mt19937 random(7);
  for (const uint64_t granularity : {512u, 4096u, 65536u}) {
    constexpr uint64_t kSize = uint64_t{1000} * 512;
    DirtyBitmap b = bitmap("b", granularity, kSize);
    std::vector<bool> model((kSize + granularity - 1) / granularity);
    for (int i = 0; i < 30; ++i) {
      const uint64_t offset = random() % kSize;
      const uint64_t length = std::min<uint64_t>(random() % 100000, kSize - offset);
      b.insert(offset, length);
      for (uint64_t at = offset; at < offset + length; ++at) model[at / granularity] = true;
      for (size_t bit = 0; bit < model.size(); ++bit) ASSERT_EQ(b.contains(bit * granularity), model[bit]) << bit;
    }
    b.clear();
    for (uint64_t at = 0; at < kSize; at += granularity) ASSERT_FALSE(b.contains(at));
  }
}

TEST(DirtyBitmap, MergesAcrossGranularities) {
  constexpr uint64_t kSize = 3 << 20;
  for (const uint64_t from_granularity : {512u, 65536u, 1u << 20})
    for (const uint64_t into_granularity : {512u, 65536u, 1u << 20}) {
      DirtyBitmap from = bitmap("from", from_granularity, kSize);
      DirtyBitmap into = bitmap("into", into_granularity, kSize);
      into.insert(0, 1);
      from.insert(70000, 5);
      from.insert(kSize - 1, 1);
      merge_bitmap(into, from, kSize);
      for (uint64_t at = 0; at < kSize; at += 512) {
        const bool expected = at < into_granularity || from.contains(at);
        if (expected) {
          ASSERT_TRUE(into.contains(at)) << at;
        }
        if (into_granularity <= from_granularity) {
          ASSERT_EQ(into.contains(at), expected) << at;
        }
      }
    }
}

TEST(DirtyBitmap, LimitsAreThoseOfTheFormat) {
  const auto refused = [](std::string name, uint64_t granularity, uint64_t size) {
    const auto made = make_bitmap(std::move(name), granularity, size, 65536);
    return made ? std::string("made") : made.error().message;
  };
  EXPECT_THAT(refused("", 65536, 1 << 20), HasSubstr("cannot be empty"));
  EXPECT_THAT(refused(std::string(1024, 'n'), 65536, 1 << 20), HasSubstr("1023"));
  EXPECT_EQ(refused(std::string(1023, 'n'), 65536, 1 << 20), "made");
  for (const uint64_t granularity : {uint64_t{0}, uint64_t{256}, uint64_t{1000}, uint64_t{1} << 32})
    EXPECT_THAT(refused("b", granularity, 1 << 20), HasSubstr("power of 2"));
  EXPECT_THAT(refused("b", 512, uint64_t{1} << 42), HasSubstr("larger granularity"));
}

class StoredBitmaps : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(Image::create(*file_, {.size = kSize, .cluster_size = 4096})); }

  std::unique_ptr<Image> open(bool writable = true) {
    auto image = Image::open(file_, {.writable = writable});
    EXPECT_TRUE(image) << image.error().message;
    return std::move(*image);
  }
  void store(const std::vector<DirtyBitmap>& bitmaps) {
    const auto stored = open()->store_bitmaps(bitmaps);
    ASSERT_TRUE(stored) << stored.error().message;
  }
  std::vector<DirtyBitmap> load() {
    auto loaded = open(false)->bitmaps();
    EXPECT_TRUE(loaded) << loaded.error().message;
    return *loaded;
  }
  void expect_clean() {
    const auto scan = test::scan_qcow2(test::contents(*file_));
    EXPECT_TRUE(scan.clean()) << scan.describe();
  }

  static constexpr uint64_t kSize = 64 << 20;
  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("disk");
};

TEST_F(StoredBitmaps, ComeBackAsTheyWere) {
  std::vector<DirtyBitmap> all = {bitmap("empty", 65536, kSize), bitmap("some", 512, kSize), bitmap("all", 512, kSize)};
  all[1].insert(5000, 100000);
  all[1].recording = false;
  all[2].insert(0, kSize);
  store(all);
  expect_clean();
  const auto found = load();
  ASSERT_EQ(found.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(found[i].name, all[i].name);
    EXPECT_EQ(found[i].granularity, all[i].granularity);
    EXPECT_EQ(found[i].recording, all[i].recording);
    EXPECT_FALSE(found[i].inconsistent);
    EXPECT_EQ(found[i].bits, all[i].bits);
  }
  EXPECT_EQ(found[2].at.table_entries, 4u);  // all ones: no clusters of their own
  store({all[1]});
  EXPECT_EQ(load().size(), 1u);
  expect_clean();
  store({});
  EXPECT_TRUE(load().empty());
  EXPECT_FALSE(open()->header().bitmaps);
  expect_clean();
}

TEST_F(StoredBitmaps, RecordWhatIsWrittenAndAreInUseMeanwhile) {
  DirtyBitmap sleeping = bitmap("sleeping", 65536, kSize);
  sleeping.recording = false;
  store({bitmap("awake", 65536, kSize), sleeping});
  {
    const auto image = open();
    EXPECT_FALSE(load()[0].inconsistent);  // nothing was written so far
    const std::vector<std::byte> data(1000, std::byte{1});
    ASSERT_TRUE(image->write_at(100000, data));
    EXPECT_TRUE(load()[0].inconsistent);
    EXPECT_FALSE(load()[1].inconsistent);
    ASSERT_TRUE(image->write_zeroes(10 << 20, 65536, ZeroMode::kMayUnmap));
    ASSERT_TRUE(image->discard(20 << 20, 65536));
    ASSERT_TRUE(image->flush());
    EXPECT_TRUE(load()[0].inconsistent);
  }
  expect_clean();
  const auto found = load();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_FALSE(found[0].inconsistent);
  EXPECT_TRUE(found[0].recording);
  for (uint64_t at = 0; at < kSize; at += 65536)
    EXPECT_EQ(found[0].contains(at), at == 65536 || at == 10 << 20 || at == 20 << 20) << at;
  EXPECT_EQ(found[1].bits, sleeping.bits);
}

TEST_F(StoredBitmaps, ThatWereNotStoredCleanlyStayUntilTheyAreRemoved) {
  store({bitmap("lost", 65536, kSize), bitmap("good", 65536, kSize)});
  const uint64_t directory = open(false)->header().bitmaps->directory_offset;
  test::poke(*file_, directory + 12, uint32_t{3});  // in use, automatic
  auto found = load();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_TRUE(found[0].inconsistent);
  found[1].insert(0, kSize);
  store(found);
  expect_clean();
  found = load();
  EXPECT_TRUE(found[0].inconsistent);
  EXPECT_TRUE(found[1].contains(kSize - 1));
  store({found[1]});
  expect_clean();
  EXPECT_EQ(load().size(), 1u);
}

TEST_F(StoredBitmaps, ThatMayMeanSomethingElseThanTheirBitsSayAreNotUsed) {
  store({bitmap("b", 65536, kSize)});
  const uint64_t directory = open(false)->header().bitmaps->directory_offset;
  test::poke(*file_, directory + 12, uint32_t{2 | 8});  // a reserved flag
  const auto found = open(false)->bitmaps();
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(found.error().message, HasSubstr("dirty bitmap 'b': it has flags that this version does not know"));
  // Nor does a write that such a bitmap would have to notice go past it.
  EXPECT_FALSE(open()->write_at(0, std::vector<std::byte>(512, std::byte{1})));
}

TEST_F(StoredBitmaps, DoNotComeBackAfterARevert) {
  store({bitmap("b", 65536, kSize)});
  {
    const auto image = open();
    const auto change = [&](auto what) {
      auto t = *SnapshotTransaction::begin(*image);
      ASSERT_TRUE(what(t));
      const auto prepared = *t.prepare();
      ASSERT_TRUE(SnapshotTransaction::commit(*image, prepared));
    };
    change([](SnapshotTransaction& t) { return t.create({.name = "one"}); });
    ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(1000, std::byte{1})));
    change([](SnapshotTransaction& t) { return t.revert(0); });
    ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(1000, std::byte{2})));
  }
  expect_clean();
  EXPECT_TRUE(load().empty());
}

TEST_F(StoredBitmaps, NeedVersion3) {
  ASSERT_TRUE(Image::create(*file_, {.size = kSize, .version = 2}));
  const auto stored = open()->store_bitmaps(std::vector{bitmap("b", 65536, kSize)});
  ASSERT_FALSE(stored);
  EXPECT_EQ(stored.error().kind, ErrorKind::kUnsupported);
}

TEST_F(StoredBitmaps, OfAnotherSizeThanTheDisksAreRefused) {
  store({bitmap("b", 512, kSize)});
  test::poke(*file_, 24, kSize / 8);
  const auto found = open(false)->bitmaps();
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(found.error().message, HasSubstr("dirty bitmap 'b': its table has 4 entries"));
}

}  // namespace
}  // namespace varve::qcow2
