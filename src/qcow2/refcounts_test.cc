#include "qcow2/refcounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "support/image_bytes.h"

namespace varve::qcow2 {
namespace {

using test::contents;
using test::peek;
using test::poke;
using testing::HasSubstr;

TEST(ClusterSet, AgreesWithASet) {
  ClusterSet set;
  std::set<uint64_t> model;
  std::mt19937_64 random(7);
  for (int i = 0; i < 300; ++i) {
    const uint64_t first = random() % 2 == 0 ? random() % 2000 : (uint64_t{1} << 30) + random() % 300;
    const uint64_t count = random() % 200;
    set.insert(first, count);
    for (uint64_t c = first; c < first + count; ++c) model.insert(c);
  }
  for (uint64_t c = 0; c < 2400; ++c) ASSERT_EQ(set.contains(c), model.contains(c)) << c;
  std::set<uint64_t> visited;
  set.for_each_word([&](uint64_t index, uint64_t word) {
    for (unsigned bit = 0; bit < 64; ++bit)
      if ((word >> bit & 1) != 0) visited.insert(index * 64 + bit);
  });
  EXPECT_EQ(visited, model);
}

// Clusters of 4 KiB: header, refcount table, block, L1; then an L2 table and data.
class HostileRefcounts : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Image::create(*file_, {.size = 1 << 20, .cluster_size = 4096}));
    const auto image = *Image::open(file_, {.writable = true});
    ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(40000, std::byte{1})));
    ASSERT_TRUE(image->flush());
    table_ = image->header().refcount_table_offset;
    block_ = peek<uint64_t>(*file_, table_);
    l1_ = image->header().l1_table_offset;
    l2_ = peek<uint64_t>(*file_, l1_) & ~(uint64_t{1} << 63);
  }
  void set_count(uint64_t offset, uint16_t count) { poke(*file_, block_ + offset / 4096 * 2, count); }

  // Reading works, writing is refused, nothing is changed.
  void expect_not_writable(const std::string& message) {
    const auto before = contents(*file_);
    EXPECT_TRUE(Image::open(file_, {}));
    const auto image = Image::open(file_, {.writable = true});
    ASSERT_FALSE(image);
    expect_corrupt(image.error(), message);
    EXPECT_EQ(contents(*file_), before);
  }
  // It opens for writing, but no snapshot is made, and nothing is changed.
  void expect_no_snapshots(const std::string& message) {
    const auto before = contents(*file_);
    const auto image = Image::open(file_, {.writable = true});
    ASSERT_TRUE(image) << image.error().message;
    const auto result = [&]() -> Result<void> {
      SnapshotTransaction t = TRY(SnapshotTransaction::begin(**image));
      TRY(t.create({.name = "s"}));
      TRY(t.prepare());
      return {};
    }();
    ASSERT_FALSE(result);
    expect_corrupt(result.error(), message);
    EXPECT_EQ(contents(*file_), before);
  }
  static void expect_corrupt(const Error& e, const std::string& message) {
    EXPECT_EQ(e.kind, ErrorKind::kCorrupt) << e.message;
    EXPECT_THAT(e.message, HasSubstr("disk.qcow2: "));
    EXPECT_THAT(e.message, HasSubstr(message));
    EXPECT_EQ(e.path, "disk.qcow2");
    EXPECT_TRUE(e.offset.has_value());
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("disk.qcow2");
  uint64_t table_ = 0;
  uint64_t block_ = 0;
  uint64_t l1_ = 0;
  uint64_t l2_ = 0;
};

TEST_F(HostileRefcounts, AMisalignedBlockIsRefused) {
  for (const uint64_t offset : {block_ + 1, block_ + 512, block_ | uint64_t{1} << 3}) {
    poke(*file_, table_, offset);
    expect_not_writable("is not cluster-aligned");
  }
}

TEST_F(HostileRefcounts, ABlockBehindTheEndIsRefused) {
  for (const uint64_t offset : {*file_->size(), uint64_t{1} << 40, uint64_t{1} << 56, ~uint64_t{0} - 4095}) {
    poke(*file_, table_ + 8, offset);
    expect_not_writable("refcount block 1 at offset");
    expect_not_writable("lies outside of the file");
  }
}

TEST_F(HostileRefcounts, ABlockThatIsNamedTwiceIsRefused) {
  poke(*file_, table_ + 8, block_);
  expect_not_writable("names one refcount block twice");
}

TEST_F(HostileRefcounts, BlocksOfClustersFarBehindTheEndAreNoOrderToAllocate) {
  // A table of 8 MiB whose last entry counts clusters at 8 TiB: every array over "all" clusters would be huge.
  const uint64_t new_table = 1 << 20;
  const uint64_t new_block = new_table + (8 << 20);
  ASSERT_TRUE(file_->resize(new_block + 4096));
  poke(*file_, new_table, block_);
  poke(*file_, new_table + (8 << 20) - 8, new_block);
  poke(*file_, 48, new_table);
  poke(*file_, 56, uint32_t{2048});
  expect_not_writable("refcount block 1048575 at offset 0x900000 counts clusters far behind the end of the file");
}

TEST_F(HostileRefcounts, AFewBlocksBehindTheEndAreHarmless) {
  const uint64_t end = *file_->size();
  poke(*file_, table_ + uint64_t{30} * 8, end);
  ASSERT_TRUE(file_->resize(end + 4096));
  set_count(end, 1);
  EXPECT_TRUE(Image::open(file_, {.writable = true}));
}

TEST_F(HostileRefcounts, MetadataThatIsCountedAsFreeStopsACommit) {
  struct {
    uint64_t offset;
    const char* what;
  } const cases[] = {{0, "the header"},
                     {table_, "the refcount table"},
                     {block_, "a refcount block"},
                     {l1_, "the L1 table"},
                     {l2_, "L2 table"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    set_count(c.offset, 0);
    expect_no_snapshots(c.what);
    set_count(c.offset, 1);
  }
}

TEST_F(HostileRefcounts, DataThatIsCountedAsFreeStopsACommit) {
  const uint64_t data = peek<uint64_t>(*file_, l2_ + 8) & ~(uint64_t{1} << 63);
  set_count(data, 0);
  expect_no_snapshots("refcount is 0");
}

TEST_F(HostileRefcounts, EntriesBeyondTheRefcountTableStopACommit) {
  poke(*file_, l2_ + 16, uint64_t{1} << 63 | uint64_t{1} << 50);
  expect_no_snapshots("is in use, but its refcount is 0");
  poke(*file_, l2_ + 16, uint64_t{1} << 62 | uint64_t{0xf} << 58 | uint64_t{1} << 57);  // compressed
  expect_no_snapshots("is in use, but its refcount is 0");
}

}  // namespace
}  // namespace varve::qcow2
