// Random histories of images, each point of which is taken apart by itself, entry by entry, and compared.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/endian.h"
#include "io/memory_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "qcow2/table_entry.h"

namespace varve::qcow2 {
namespace {

using Bytes = std::vector<std::byte>;

class PointsTest : public testing::TestWithParam<std::tuple<unsigned, CreateOptions>> {
 protected:
  void SetUp() override {
    file_ = std::make_shared<MemoryDevice>("test.qcow2");
    ASSERT_TRUE(Image::create(*file_, std::get<1>(GetParam())));
    auto image = Image::open(file_, {.writable = true});
    ASSERT_TRUE(image) << image.error().message;
    image_ = std::move(*image);
    random_.seed(std::get<0>(GetParam()));
  }

  uint64_t below(uint64_t limit) { return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random_); }

  template <typename Change>
  void change(Change what) {
    const auto run = [&]() -> Result<void> {
      SnapshotTransaction t = TRY(SnapshotTransaction::begin(*image_));
      TRY(what(t));
      const PreparedCommit prepared = TRY(t.prepare());
      TRY(SnapshotTransaction::commit(*image_, prepared));
      return SnapshotTransaction::discard_freed(*image_, prepared);
    };
    const auto done = run();
    ASSERT_TRUE(done) << done.error().message;
  }

  void step() {
    const uint64_t size = *image_->size();
    const uint64_t cluster = image_->header().cluster_size();
    const size_t points = image_->snapshots().size();
    switch (below(8)) {
      case 0:
      case 1:
        change([&](SnapshotTransaction& t) { return t.create({.name = std::to_string(++names_)}); });
        break;
      case 2:
        if (points > 0) {
          change([&](SnapshotTransaction& t) { return t.revert(below(points)); });
        }
        break;
      case 3:
        if (points > 2) {
          const size_t index = below(points);
          change([&](SnapshotTransaction& t) { return t.remove(std::span(&index, 1)); });
        }
        break;
      case 4: {
        const uint64_t offset = below(size / cluster) * cluster;
        ASSERT_TRUE(image_->write_compressed(offset, Bytes(cluster, std::byte(below(256)))));
        break;
      }
      case 5: {
        const uint64_t offset = below(size / cluster) * cluster;
        ASSERT_TRUE(image_->write_zeroes(offset, std::min(size - offset, cluster * (1 + below(40))),
                                         below(2) == 0 ? ZeroMode::kMayUnmap : ZeroMode::kKeepAllocated));
        break;
      }
      default: {
        const uint64_t offset = below(size / 512) * 512;
        Bytes data(std::min(size - offset, 512 * (1 + below(400))));
        for (std::byte& byte : data) byte = std::byte(below(256));
        ASSERT_TRUE(image_->write_at(offset, data));
      }
    }
  }

  // L1 table of a point: its place and its entries.
  std::pair<uint64_t, uint32_t> l1_of(size_t point) const {
    if (point == image_->snapshots().size()) return {image_->header().l1_table_offset, image_->header().l1_size};
    return {image_->snapshots()[point].l1_table_offset, image_->snapshots()[point].l1_size};
  }
  std::vector<uint64_t> words_at(uint64_t offset, size_t count) const {
    std::vector<be64> raw(count);
    const uint64_t there = std::min<uint64_t>(count * 8, *file_->size() - offset);
    EXPECT_TRUE(file_->read_at(offset, std::as_writable_bytes(std::span(raw)).first(there)));
    return {raw.begin(), raw.end()};
  }

  // Which points hold each cluster of the file, and what each point shares with the one before.
  struct Truth {
    std::map<uint64_t, std::set<size_t>> holders;
    std::vector<uint64_t> shared;
  };
  Truth truth() const {
    Truth truth;
    const EntryFormat format(image_->header());
    const uint64_t size = format.cluster_size();
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> before;  // of the point before: guest cluster → entry, its bytes
    std::map<uint64_t, uint64_t> tables_before;
    for (size_t point = 0; point <= image_->snapshots().size(); ++point) {
      const auto [l1_offset, l1_size] = l1_of(point);
      for (uint64_t at = l1_offset / size; at * size < l1_offset + l1_size * 8; ++at) truth.holders[at].insert(point);
      std::map<uint64_t, std::pair<uint64_t, uint64_t>> entries;
      std::map<uint64_t, uint64_t> tables;
      uint64_t shared = 0;
      const std::vector<uint64_t> l1 = words_at(l1_offset, l1_size);
      for (size_t i = 0; i < l1.size(); ++i) {
        const uint64_t table = l1[i] & kOffsetMask;
        if (table == 0) continue;
        truth.holders[table / size].insert(point);
        tables[i] = table;
        if (const auto same = tables_before.find(i); same != tables_before.end() && same->second == table)
          shared += size;
        const std::vector<uint64_t> words = words_at(table, size / 8);
        for (size_t at = 0; at < words.size(); at += format.entry_words()) {
          const uint64_t entry = words[at] & ~kEntryCopied;
          uint64_t bytes = 0;
          if ((entry & kEntryCompressed) != 0) {
            const CompressedRange range = format.compressed_range(entry);
            bytes = range.length;
            for (uint64_t c = range.offset / size; c <= (range.offset + range.length - 1) / size; ++c) {
              truth.holders[c].insert(point);
            }
          } else if ((entry & kOffsetMask) != 0) {
            bytes = size;
            truth.holders[(entry & kOffsetMask) / size].insert(point);
          }
          if (bytes == 0) continue;
          const uint64_t guest = i * words.size() + at;
          entries[guest] = {entry, bytes};
          const auto old = before.find(guest);
          if (old != before.end() && old->second.first == entry) shared += bytes;
        }
      }
      truth.shared.push_back(point == 0 ? 0 : shared);
      before = std::move(entries);
      tables_before = std::move(tables);
    }
    return truth;
  }

  void expect_spaces() {
    ASSERT_TRUE(image_->flush());
    const auto spaces = image_->point_spaces();
    ASSERT_TRUE(spaces) << spaces.error().message;
    const Truth expected = truth();
    const size_t points = image_->snapshots().size() + 1;
    ASSERT_EQ(spaces->points().size(), points);
    for (size_t point = 0; point < points; ++point) {
      EXPECT_EQ(spaces->points()[point].shared_with_previous_bytes, expected.shared[point]) << point;
      if (point + 1 == points) continue;
      const auto usage = image_->snapshot_usage(point);
      ASSERT_TRUE(usage) << usage.error().message;
      EXPECT_EQ(spaces->points()[point].referenced_bytes, usage->referenced_bytes) << point;
      EXPECT_EQ(spaces->points()[point].exclusive_bytes, usage->exclusive_bytes) << point;
    }
    for (size_t first = 0; first < points; ++first) {
      for (size_t last = first; last < points; ++last) {
        uint64_t bytes = 0;
        for (const auto& [cluster, holders] : expected.holders) {
          if (*holders.begin() >= first && *holders.rbegin() <= last) bytes += image_->header().cluster_size();
        }
        EXPECT_EQ(spaces->exclusive_bytes(first, last), bytes) << first << " to " << last;
      }
    }
  }

  Bytes contents_of(size_t point) {
    std::unique_ptr<BlockDevice> view;
    BlockDevice* device = image_.get();
    if (point < image_->snapshots().size()) {
      view = *image_->open_snapshot(point);
      device = view.get();
    }
    Bytes bytes(*device->size());
    EXPECT_TRUE(device->read_at(0, bytes));
    return bytes;
  }

  // The entry that a point has for a guest's cluster; 0: none.
  std::vector<uint64_t> entry_at(size_t point, uint64_t guest_offset) const {
    const EntryFormat format(image_->header());
    const uint64_t per_table = format.cluster_size() / 8 / format.entry_words();
    const uint64_t cluster = guest_offset / format.cluster_size();
    const auto [l1_offset, l1_size] = l1_of(point);
    const uint64_t table = words_at(l1_offset, l1_size).at(cluster / per_table) & kOffsetMask;
    if (table == 0) return std::vector<uint64_t>(format.entry_words());
    std::vector<uint64_t> words =
        words_at(table + cluster % per_table * 8 * format.entry_words(), format.entry_words());
    words[0] &= ~kEntryCopied;
    return words;
  }

  // Where no difference is told, none is; where one is told, the entries differ.
  void expect_differences() {
    ASSERT_TRUE(image_->flush());
    const size_t points = image_->snapshots().size() + 1;
    const size_t one = below(points);
    const size_t other = below(points);
    const auto difference = image_->compare_points(one, other);
    ASSERT_TRUE(difference) << difference.error().message;
    EXPECT_TRUE(one != other || difference->ranges.empty());
    Bytes first = contents_of(one);
    Bytes second = contents_of(other);
    uint64_t end = 0;
    for (const auto& [offset, length] : difference->ranges) {
      ASSERT_GE(offset, end);
      ASSERT_GT(length, 0u);
      end = offset + length;
      ASSERT_LE(end, first.size());
      for (uint64_t at = offset; at < end; at += image_->header().cluster_size()) {
        ASSERT_NE(entry_at(one, at), entry_at(other, at)) << at;
      }
      std::fill_n(first.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
      std::fill_n(second.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    }
    EXPECT_TRUE(first == second) << one << " and " << other;
  }

  std::mt19937 random_;
  std::shared_ptr<MemoryDevice> file_;
  std::unique_ptr<Image> image_;
  unsigned names_ = 0;
};

TEST_P(PointsTest, EveryFigureIsThatOfTheTables) {
  for (int i = 0; i < 60 && !HasFatalFailure(); ++i) {
    step();
    if (i % 10 == 9) expect_spaces();
    expect_differences();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Histories, PointsTest,
    testing::Combine(testing::Range(1u, 4u),
                     testing::Values(CreateOptions{.size = 2 << 20, .cluster_size = 4096},
                                     CreateOptions{.size = 256 << 10, .cluster_size = 512},
                                     CreateOptions{.size = 8 << 20, .cluster_size = 65536},
                                     CreateOptions{.size = 4 << 20, .cluster_size = 16384, .extended_l2 = true})));

// What is unshared is found, and no more than that.
TEST(PointDifferenceTest, OneWriteIsOneCluster) {
  auto file = std::make_shared<MemoryDevice>("test.qcow2");
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 30, .preallocate_metadata = true}));
  const auto image = *Image::open(file, {.writable = true});
  auto transaction = *SnapshotTransaction::begin(*image);
  ASSERT_TRUE(transaction.create({.name = "before"}));
  const PreparedCommit prepared = *transaction.prepare();
  ASSERT_TRUE(SnapshotTransaction::commit(*image, prepared));
  ASSERT_TRUE(image->write_at(700'000'000, Bytes(10, std::byte{1})));
  const auto difference = image->compare_points(0, 1);
  ASSERT_TRUE(difference) << difference.error().message;
  EXPECT_THAT(difference->ranges,
              testing::ElementsAre(std::pair<uint64_t, uint64_t>(700'000'000 / 65536 * 65536, 65536)));
}

// Of two disks of different sizes, all behind the end of the smaller one is different.
TEST(PointDifferenceTest, ADiskThatGrewIsDifferentAtItsEnd) {
  auto file = std::make_shared<MemoryDevice>("test.qcow2");
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 20}));
  const auto image = *Image::open(file, {.writable = true});
  auto transaction = *SnapshotTransaction::begin(*image);
  ASSERT_TRUE(transaction.create({.name = "before"}));
  const PreparedCommit prepared = *transaction.prepare();
  ASSERT_TRUE(SnapshotTransaction::commit(*image, prepared));
  ASSERT_TRUE(image->resize(3 << 20));
  ASSERT_TRUE(image->write_at(0, Bytes(10, std::byte{1})));
  ASSERT_TRUE(image->write_at(2 << 20, Bytes(10, std::byte{1})));
  const auto difference = image->compare_points(0, 1);
  ASSERT_TRUE(difference) << difference.error().message;
  EXPECT_THAT(difference->ranges, testing::ElementsAre(std::pair<uint64_t, uint64_t>(0, 65536),
                                                       std::pair<uint64_t, uint64_t>(1 << 20, 2 << 20)));
}

}  // namespace
}  // namespace varve::qcow2
