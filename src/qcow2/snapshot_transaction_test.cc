#include "qcow2/snapshot_transaction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "base/endian.h"
#include "io/fault_device.h"
#include "io/memory_device.h"
#include "qcow2/refcounts.h"

namespace varve::qcow2 {
namespace {

using Bytes = std::vector<std::byte>;

Bytes pattern(size_t bytes, unsigned seed) {
  Bytes out(bytes);
  std::mt19937 random(seed);
  for (auto& b : out) b = static_cast<std::byte>(random());
  return out;
}

Bytes read_all(BlockDevice& device) {
  Bytes out(*device.size());
  auto r = device.read_at(0, out);
  EXPECT_TRUE(r) << r.error().message;
  return out;
}

class SnapshotTransactionTest : public testing::Test {
 protected:
  void make(const CreateOptions& options) {
    file_ = std::make_shared<MemoryDevice>("test.qcow2");
    ASSERT_TRUE(Image::create(*file_, options));
    reopen();
  }
  void reopen() {
    image_.reset();
    auto image = Image::open(file_, {.writable = true});
    ASSERT_TRUE(image) << image.error().message;
    image_ = std::move(*image);
  }
  void write(uint64_t offset, const Bytes& data) {
    auto r = image_->write_at(offset, data);
    ASSERT_TRUE(r) << r.error().message;
  }
  template <typename Change>
  Result<void> change(Change what) {
    SnapshotTransaction t = TRY(SnapshotTransaction::begin(*image_));
    TRY(what(t));
    const PreparedCommit prepared = TRY(t.prepare());
    TRY(SnapshotTransaction::commit(*image_, prepared));
    return SnapshotTransaction::discard_freed(*image_, prepared);
  }
  void create(const std::string& name) {
    auto r = change([&](SnapshotTransaction& t) { return t.create({.name = name, .date_sec = 1, .date_nsec = 2}); });
    ASSERT_TRUE(r) << r.error().message;
  }
  void revert(const std::string& name) {
    auto r = change([&](SnapshotTransaction& t) { return t.revert(*find_by_name(t.snapshots(), name)); });
    ASSERT_TRUE(r) << r.error().message;
  }
  void remove(const std::string& name) {
    auto r = change([&](SnapshotTransaction& t) {
      const size_t index = *find_by_name(t.snapshots(), name);
      return t.remove(std::span(&index, 1));
    });
    ASSERT_TRUE(r) << r.error().message;
  }
  Bytes at_snapshot(const std::string& name) {
    auto view = image_->open_snapshot(*find_by_name(image_->snapshots(), name));
    EXPECT_TRUE(view);
    return read_all(**view);
  }

  std::shared_ptr<MemoryDevice> file_;
  std::unique_ptr<Image> image_;
};

TEST_F(SnapshotTransactionTest, RevertBringsTheOldContentsBackAndDeleteLeavesTheRest) {
  make({.size = 1 << 20, .cluster_size = 4096});
  const Bytes first = pattern(200000, 1);
  write(1000, first);
  create("one");
  const Bytes at_one = read_all(*image_);
  write(50000, pattern(100000, 2));
  create("two");
  const Bytes at_two = read_all(*image_);
  write(0, pattern(1 << 20, 3));
  EXPECT_EQ(at_snapshot("one"), at_one);
  EXPECT_EQ(at_snapshot("two"), at_two);
  revert("one");
  EXPECT_EQ(read_all(*image_), at_one);
  remove("one");
  EXPECT_EQ(read_all(*image_), at_one);
  EXPECT_EQ(at_snapshot("two"), at_two);
  reopen();
  revert("two");
  EXPECT_EQ(read_all(*image_), at_two);
}

TEST_F(SnapshotTransactionTest, UntilTheCommitTheImageIsTheOldOne) {
  make({.size = 1 << 20});
  write(0, pattern(300000, 1));
  ASSERT_TRUE(image_->flush());
  const Bytes contents = read_all(*image_);
  auto t = SnapshotTransaction::begin(*image_);
  ASSERT_TRUE(t);
  ASSERT_TRUE(t->create({.name = "s"}));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared);
  {
    auto other = Image::open(std::shared_ptr<BlockDevice>(file_->clone()), {.writable = true});
    ASSERT_TRUE(other);
    EXPECT_TRUE((*other)->snapshots().empty());
    EXPECT_EQ(read_all(**other), contents);
  }
  ASSERT_TRUE(SnapshotTransaction::commit(*image_, *prepared));
  ASSERT_EQ(image_->snapshots().size(), 1u);
  EXPECT_EQ(image_->snapshots()[0].name, "s");
  EXPECT_EQ(image_->snapshots()[0].id, "1");
  // Again: already done.
  EXPECT_TRUE(SnapshotTransaction::commit(*image_, *prepared));
}

TEST_F(SnapshotTransactionTest, AnAbandonedCommitGivesItsSpaceBack) {
  make({.size = 64 << 20});
  write(0, pattern(1 << 20, 1));
  ASSERT_TRUE(image_->flush());
  const uint64_t size = *file_->size();
  auto t = SnapshotTransaction::begin(*image_);
  ASSERT_TRUE(t);
  ASSERT_TRUE(t->create({.name = "s"}));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared);
  EXPECT_GT(*file_->size(), size);
  SnapshotTransaction::abandon(*image_, *prepared);
  EXPECT_EQ(*file_->size(), size);
}

// The sector is written, but the program can't read what it says: writing by the old refcounts would destroy it.
TEST_F(SnapshotTransactionTest, AfterACommitThatFailedNothingIsWrittenUntilItIsRepeated) {
  MemoryDevice fresh("test.qcow2");
  ASSERT_TRUE(Image::create(fresh, {.size = 1 << 20}));
  const auto disk = std::make_shared<FaultDevice>(fresh.clone());
  image_ = *Image::open(disk, {.writable = true});
  const Bytes data = pattern(300000, 1);
  write(0, data);
  ASSERT_TRUE(image_->flush());
  auto t = SnapshotTransaction::begin(*image_);
  ASSERT_TRUE(t);
  ASSERT_TRUE(t->create({.name = "s"}));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared);

  disk->control().inject({.at = 1, .kinds = kOpRead});  // the first read looks at the sector
  ASSERT_FALSE(SnapshotTransaction::commit(*image_, *prepared));
  disk->control().clear_fault();
  EXPECT_TRUE(image_->snapshots().empty());
  Bytes now(data.size());
  ASSERT_TRUE(image_->read_at(0, now));
  EXPECT_EQ(now, data);
  EXPECT_FALSE(image_->write_at(0, data));
  EXPECT_FALSE(image_->write_at(900000, pattern(1000, 2)));
  EXPECT_FALSE(SnapshotTransaction::begin(*image_));
  // What is the image now is not given back.
  const Bytes bytes = read_all(*disk);
  SnapshotTransaction::abandon(*image_, *prepared);
  EXPECT_EQ(read_all(*disk), bytes);

  ASSERT_TRUE(SnapshotTransaction::commit(*image_, *prepared));
  EXPECT_EQ(image_->snapshots().size(), 1u);
  write(900000, pattern(1000, 2));
  EXPECT_TRUE(image_->flush());
}

TEST_F(SnapshotTransactionTest, AnotherProgramsHeaderIsNotOverwritten) {
  make({.size = 1 << 20});
  auto t = SnapshotTransaction::begin(*image_);
  ASSERT_TRUE(t);
  ASSERT_TRUE(t->create({.name = "s"}));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared);
  const std::byte other{1};
  ASSERT_TRUE(file_->write_at(87, std::span(&other, 1)));
  const auto r = SnapshotTransaction::commit(*image_, *prepared);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInUse);
}

TEST_F(SnapshotTransactionTest, SeveralChangesAreOneCommit) {
  make({.size = 1 << 20, .cluster_size = 4096});
  write(0, pattern(500000, 1));
  create("a");
  const Bytes at_a = read_all(*image_);
  write(0, pattern(500000, 2));
  const Bytes before = read_all(*image_);
  auto r = change([&](SnapshotTransaction& t) -> Result<void> {
    TRY(t.create({.name = "safety"}));
    TRY(t.revert(*find_by_name(t.snapshots(), "a")));
    return t.rename(*find_by_name(t.snapshots(), "a"), "ä b");
  });
  ASSERT_TRUE(r) << r.error().message;
  EXPECT_EQ(read_all(*image_), at_a);
  EXPECT_EQ(at_snapshot("safety"), before);
  EXPECT_EQ(at_snapshot("ä b"), at_a);
  remove("safety");
  remove("ä b");
  EXPECT_EQ(read_all(*image_), at_a);
}

TEST_F(SnapshotTransactionTest, ARefcountThatCannotGrowIsRefusedAndChangesNothing) {
  make({.size = 1 << 20, .refcount_bits = 1});
  write(0, pattern(100000, 1));
  ASSERT_TRUE(image_->flush());
  const auto before = read_all(*file_);
  auto r = change([&](SnapshotTransaction& t) { return t.create({.name = "s"}); });
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(r.error().message, testing::HasSubstr("can't be referenced more than 1 times"));
  EXPECT_EQ(read_all(*file_), before);
}

TEST_F(SnapshotTransactionTest, ATableThatCountsFarBehindTheFileIsRefusedBeforeMemoryIsTaken) {
  make({.size = 1 << 20});
  image_.reset();
  // The last entry of the refcount table: cluster 268 million and on. The L1 table will do as its block.
  const Header header = *read_header(*file_);
  const uint64_t entry = header.refcount_table_offset + header.refcount_table_clusters * header.cluster_size() - 8;
  be64 block;
  block = header.l1_table_offset;
  ASSERT_TRUE(file_->write_at(entry, std::as_bytes(std::span(&block, 1))));
  const auto before = read_all(*file_);
  auto image = Image::open(file_, {.writable = true});
  auto begun = image ? SnapshotTransaction::begin(**image) : Result<SnapshotTransaction>(std::move(image).error());
  ASSERT_FALSE(begun);
  EXPECT_EQ(begun.error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(begun.error().message, testing::HasSubstr("counts clusters far behind the end of the file"));
  EXPECT_EQ(begun.error().offset, entry);
  EXPECT_EQ(read_all(*file_), before);
}

TEST_F(SnapshotTransactionTest, TablesThatAreSharedAlreadyAreNotWrittenAgain) {
  make({.size = 64 << 20, .cluster_size = 4096, .preallocate_metadata = true});
  create("first");
  auto t = SnapshotTransaction::begin(*image_);
  ASSERT_TRUE(t);
  ASSERT_TRUE(t->create({.name = "second"}));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared);
  uint64_t bytes = 0;
  for (const FileRange& r : prepared->shadow) bytes += r.length;
  // 16384 data clusters: 9 refcount blocks or so, their table, two L1 tables at the most, the snapshot table; no L2.
  EXPECT_LE(bytes, 16u * 4096);
}

TEST_F(SnapshotTransactionTest, UsageTellsWhatASnapshotHoldsAlone) {
  make({.size = 16 << 20});
  write(0, pattern(size_t{10} * 65536, 1));
  create("s");
  auto usage = image_->snapshot_usage(0);
  ASSERT_TRUE(usage) << usage.error().message;
  EXPECT_EQ(usage->referenced_bytes, (10 + 1 + 1) * 65536u);  // data, an L2 table, the L1 table
  EXPECT_EQ(usage->exclusive_bytes, 65536u);                  // its L1 table
  write(0, pattern(size_t{4} * 65536, 2));
  usage = image_->snapshot_usage(0);
  EXPECT_EQ(usage->exclusive_bytes, (4 + 1 + 1) * 65536u);
}

TEST_F(SnapshotTransactionTest, TenThousandSnapshotsStayAddressable) {
  make({.size = 1 << 20, .cluster_size = 512});
  write(0, pattern(1000, 1));
  for (int round = 0; round < 10; ++round) {
    auto r = change([&](SnapshotTransaction& t) -> Result<void> {
      for (int i = 0; i < 1000; ++i) TRY(t.create({.name = "s" + std::to_string(round * 1000 + i)}));
      return {};
    });
    ASSERT_TRUE(r) << r.error().message;
  }
  reopen();
  EXPECT_EQ(image_->snapshots().size(), 10000u);
  EXPECT_EQ(image_->snapshots().back().id, "10000");
  revert("s5000");
  std::vector<size_t> all(image_->snapshots().size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  ASSERT_TRUE(change([&](SnapshotTransaction& t) { return t.remove(all); }));
  EXPECT_TRUE(image_->snapshots().empty());
  EXPECT_EQ(read_all(*image_).size(), 1u << 20);
}

}  // namespace
}  // namespace varve::qcow2
