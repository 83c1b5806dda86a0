#include "qcow2/point_watch.h"

#include <errno.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kSize = 64 << 20;

// Two programs that share a file: one that changes it, and a reader without a lock.
class PointWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Image::create(*file_, {.size = kSize}));
    writer_ = *Image::open(file_, {.writable = true});
    ASSERT_TRUE(writer_->write_at(0, std::vector<std::byte>(1 << 20, std::byte{1})));
  }

  template <typename Change>
  void change(const Change& change) {
    auto transaction = SnapshotTransaction::begin(*writer_);
    ASSERT_TRUE(transaction) << transaction.error().message;
    ASSERT_TRUE(change(*transaction));
    const auto prepared = transaction->prepare();
    ASSERT_TRUE(prepared);
    ASSERT_TRUE(SnapshotTransaction::commit(*writer_, *prepared));
    ASSERT_TRUE(SnapshotTransaction::discard_freed(*writer_, *prepared));
  }
  void create(const std::string& name, uint32_t date_nsec = 0) {
    change([&](SnapshotTransaction& t) { return t.create({.name = name, .date_sec = 1, .date_nsec = date_nsec}); });
  }
  void remove(size_t index) {
    change([&](SnapshotTransaction& t) { return t.remove(std::array{index}); });
  }
  std::unique_ptr<PointWatch> watch(const std::string& name) {
    const auto reader = Image::open(file_, {});
    const auto& snapshots = (*reader)->snapshots();
    auto begun = PointWatch::begin(*file_, (*reader)->header(), snapshots.at(*find_by_name(snapshots, name)));
    EXPECT_TRUE(begun) << begun.error().message;
    return std::move(*begun);
  }
  static void expect_gone(PointWatch& watch) {
    for (int i = 0; i < 2; ++i) {  // and it stays gone
      const auto checked = watch.check(0, 65536);
      ASSERT_FALSE(checked);
      EXPECT_EQ(checked.error().kind, ErrorKind::kIo);
      EXPECT_EQ(checked.error().sys_errno, ESTALE);
    }
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>();
  std::unique_ptr<Image> writer_;
};

TEST_F(PointWatchTest, ASnapshotStaysWhileTheGuestWrites) {
  create("s");
  const auto watched = watch("s");
  EXPECT_TRUE(watched->check(0, kSize));
  ASSERT_TRUE(writer_->write_at(0, std::vector<std::byte>(4 << 20, std::byte{2})));
  ASSERT_TRUE(writer_->flush());
  EXPECT_TRUE(watched->check(0, kSize));
  EXPECT_TRUE(watched->check(kSize - 1, 1));
  EXPECT_TRUE(watched->check(0, 0));
}

TEST_F(PointWatchTest, ItStaysWhenTheTableMoves) {
  for (int i = 0; i < 60; ++i) create(fmt::format("a-name-of-some-length-{}", i));  // a table of several KiB
  create("s");
  const auto watched = watch("s");
  for (int i = 0; i < 5; ++i) {
    change([&](SnapshotTransaction& t) { return t.rename(static_cast<size_t>(i), fmt::format("other-{}", i)); });
    EXPECT_TRUE(watched->check(0, kSize));
  }
  change([&](SnapshotTransaction& t) { return t.rename(60, "new name"); });
  EXPECT_TRUE(watched->check(0, kSize));
}

TEST_F(PointWatchTest, ItIsGoneWhenItIsDeleted) {
  create("s");
  create("t");
  const auto watched = watch("s");
  remove(0);
  expect_gone(*watched);
}

TEST_F(PointWatchTest, ItIsGoneWhenAnotherOneTakesItsPlace) {
  create("s", 1);
  const auto watched = watch("s");
  remove(0);
  create("s", 2);
  EXPECT_EQ(writer_->snapshots().at(0).id, "1");
  expect_gone(*watched);
}

// Varve itself puts the tables of a snapshot elsewhere when it changes their COPIED flags, and gives the old ones away,
// and the entry may come back to the place where it was.
TEST_F(PointWatchTest, ItIsGoneWhenAnL1EntryIsAnother) {
  create("s");
  const auto watched = watch("s");
  const uint64_t l1 = writer_->snapshots().at(0).l1_table_offset;
  std::array<std::byte, 8> entry;
  ASSERT_TRUE(file_->read_at(l1, entry));
  entry[0] ^= std::byte{0x80};  // COPIED may change
  ASSERT_TRUE(file_->write_at(l1, entry));
  EXPECT_TRUE(watched->check(0, 1));
  entry[5] ^= std::byte{1};
  ASSERT_TRUE(file_->write_at(l1, entry));
  expect_gone(*watched);
}

}  // namespace
}  // namespace varve::qcow2
