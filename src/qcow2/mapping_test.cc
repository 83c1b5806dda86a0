#include "qcow2/mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

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

constexpr uint64_t kCopied = uint64_t{1} << 63;

class HostileMapping : public testing::Test {
 protected:
  void make(const CreateOptions& options) {
    ASSERT_TRUE(Image::create(*file_, options));
    const auto image = *Image::open(file_, {.writable = true});
    ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(4 * options.cluster_size, std::byte{1})));
    ASSERT_TRUE(image->flush());
    header_ = image->header();
    l1_ = header_.l1_table_offset;
    l2_ = peek<uint64_t>(*file_, l1_) & ~kCopied;
    first_ = peek<uint64_t>(*file_, l2_);
  }
  void SetUp() override { make({.size = 1 << 20, .cluster_size = 4096}); }

  // Neither read nor snapshotted, and nothing is written.
  void expect_refused(const std::string& message, bool in_snapshots_too = true) {
    SCOPED_TRACE(message);
    const auto before = contents(*file_);
    {
      const auto image = Image::open(file_, {});
      ASSERT_TRUE(image) << image.error().message;
      std::vector<std::byte> buffer(header_.cluster_size());
      const auto read = (*image)->read_at(0, buffer);
      ASSERT_FALSE(read);
      expect_corrupt(read.error(), message);
      EXPECT_FALSE((*image)->extents(0, 1 << 20));
    }
    const auto result = [&]() -> Result<void> {
      const auto image = TRY(Image::open(file_, {.writable = true}));
      SnapshotTransaction t = TRY(SnapshotTransaction::begin(*image));
      TRY(t.create({.name = "s"}));
      TRY(t.prepare());
      return {};
    }();
    if (in_snapshots_too) {
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().kind, ErrorKind::kCorrupt) << result.error().message;
      EXPECT_EQ(contents(*file_), before);
    }
  }
  static void expect_corrupt(const Error& e, const std::string& message) {
    EXPECT_EQ(e.kind, ErrorKind::kCorrupt);
    EXPECT_THAT(e.message, HasSubstr("disk.qcow2: "));
    EXPECT_THAT(e.message, HasSubstr(message));
    EXPECT_EQ(e.path, "disk.qcow2");
    EXPECT_TRUE(e.offset.has_value());
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("disk.qcow2");
  Header header_;
  uint64_t l1_ = 0;
  uint64_t l2_ = 0;
  uint64_t first_ = 0;  // L2 entry
};

TEST_F(HostileMapping, L1EntriesWithReservedBitsAreRefused) {
  for (const uint64_t bit : {uint64_t{1}, uint64_t{1} << 8, uint64_t{1} << 56, uint64_t{1} << 62}) {
    poke(*file_, l1_, kCopied | l2_ | bit);
    expect_refused("is misaligned or has reserved bits set");
  }
}

TEST_F(HostileMapping, MisalignedL2TablesAreRefused) {
  poke(*file_, l1_, kCopied | (l2_ + 512));
  expect_refused("L1 entry 0 (");
}

TEST_F(HostileMapping, L2TablesBehindTheEndOfTheFileAreRefused) {
  for (const uint64_t offset : {*file_->size(), uint64_t{1} << 50, (uint64_t{1} << 56) - 4096}) {
    poke(*file_, l1_, kCopied | offset);
    expect_refused("lies outside of the file of");
  }
}

TEST_F(HostileMapping, MisalignedDataIsRefused) {
  poke(*file_, l2_, first_ + 512);
  expect_refused("is mapped to offset");
}

TEST_F(HostileMapping, DataBehindTheEndOfTheFileReadsAsZeroes) {
  poke(*file_, l2_, kCopied | uint64_t{1} << 50);
  const auto image = *Image::open(file_, {});
  std::vector<std::byte> buffer(4096, std::byte{9});
  ASSERT_TRUE(image->read_at(0, buffer));
  EXPECT_EQ(buffer, std::vector<std::byte>(4096));
}

TEST_F(HostileMapping, TheZeroFlagDoesNotExistInVersion2) {
  make({.size = 1 << 20, .version = 2, .cluster_size = 4096});
  for (const uint64_t entry : {first_ | 1, uint64_t{1}}) {
    poke(*file_, l2_, entry);
    expect_refused("has bits that contradict each other or its version", false);
  }
}

TEST_F(HostileMapping, SubclustersAreEitherAllocatedOrZero) {
  make({.size = 1 << 20, .cluster_size = 16384, .extended_l2 = true});
  poke(*file_, l2_ + 8, uint64_t{0x00000001'00000001});
  expect_refused("has bits that contradict each other", false);
  poke(*file_, l2_ + 8, ~uint64_t{0});
  expect_refused("has bits that contradict each other", false);
}

TEST_F(HostileMapping, SubclustersNeedAClusterToBeAllocatedIn) {
  make({.size = 1 << 20, .cluster_size = 16384, .extended_l2 = true});
  poke(*file_, l2_, uint64_t{0});
  poke(*file_, l2_ + 8, uint64_t{0x80000000});
  expect_refused("has bits that contradict each other", false);
}

TEST_F(HostileMapping, ADiskOfHalfASectorMoreIsADiskOfWholeSectors) {
  poke(*file_, 24, uint64_t{(1 << 20) - 100});
  const auto image = *Image::open(file_, {});
  EXPECT_EQ(*image->size(), (1u << 20) - 512);
}

// Entries of all kinds, often one that goes on where the last one ended: what lookup() joins is what its clusters are.
TEST(RunsOfMapping, AreWhatTheirClustersAre) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200 && !testing::Test::HasFailure(); ++round) {
    EntryFormat format;
    format.cluster_bits = 9 + static_cast<uint32_t>(random() % 3);
    format.version = random() % 4 == 0 ? 2 : 3;
    format.data_file = format.version == 3 && random() % 3 == 0;
    const uint64_t cluster = format.cluster_size();
    const uint64_t entries = cluster / 8;
    constexpr uint64_t kTable = 4096;
    MemoryDevice file;
    ASSERT_TRUE(file.resize(uint64_t{1} << 20));
    poke<uint64_t>(file, 0, kCopied | kTable);
    uint64_t last = 0;
    for (uint64_t i = 0; i < entries; ++i) {
      uint64_t entry = last;  // the same again
      switch (random() % 8) {
        case 0:
          entry = 0;
          break;
        case 1:
          entry = format.version == 3 ? kEntryZero : 0;
          break;
        case 2:
          entry = (format.data_file ? i * cluster : random() % 64 * cluster) | (random() % 2 == 0 ? kCopied : 0);
          break;
        case 3:
          entry = (random() % 64 * cluster) | kEntryZero;
          break;
        case 4:
          entry = kEntryCompressed | random() % 4096;
          break;
        case 5:
          entry = (kOffsetMask & ~(cluster - 1)) | kCopied;
          break;  // the last place that there is
        default:
          entry = (last & ~kCopied) + cluster + (random() % 2 == 0 ? kCopied : 0);
          break;
      }
      poke<uint64_t>(file, kTable + i * 8, entry);
      last = entry;
    }
    auto mapping = Mapping::open(file, format, 0, 1);
    ASSERT_TRUE(mapping);
    for (const RunJoin join : {RunJoin::kByKind, RunJoin::kByPlace}) {
      for (uint64_t start = 0; start < entries; ++start) {
        const uint64_t guest = start * cluster + random() % cluster;
        const uint64_t most = 1 + random() % (entries * cluster - guest);
        const auto run = mapping->lookup(guest, most, join);
        const auto first = mapping->lookup(guest, std::min(most, cluster - guest % cluster), join);
        ASSERT_EQ(run.has_value(), first.has_value());
        if (!run) continue;
        SCOPED_TRACE(testing::Message() << "from " << guest << " for " << most << ", got " << run->length);
        ASSERT_LE(run->length, most);
        // Every cluster of it, and not the one behind it.
        for (uint64_t at = guest + first->length; at < guest + most; at += cluster) {
          const auto one = mapping->lookup(at, cluster, join);
          // Where zeroes would lie is of no interest to who does not ask for it.
          if (!one && run->kind == MappedRun::Kind::kZero && join == RunJoin::kByKind) break;
          bool belongs = one.has_value() && one->kind == run->kind && run->kind != MappedRun::Kind::kCompressed;
          if (belongs && (run->kind == MappedRun::Kind::kData ||
                          (join == RunJoin::kByPlace && (run->has_place || one->has_place)))) {
            belongs = one->has_place == run->has_place && one->host_offset == run->host_offset + (at - guest);
          }
          EXPECT_EQ(belongs, at < guest + run->length) << "at " << at;
          if (!belongs) break;
        }
      }
    }
  }
}

}  // namespace
}  // namespace varve::qcow2
