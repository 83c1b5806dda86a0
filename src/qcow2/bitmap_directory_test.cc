#include "qcow2/bitmap_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "support/image_bytes.h"

namespace varve::qcow2 {
namespace {

using test::poke;
using test::poke_bytes;
using testing::HasSubstr;

// Clusters of 4 KiB: a directory with one entry, "dirty", in one cluster, its table in the next, data behind.
class BitmapDirectory : public testing::Test {
 protected:
  static constexpr uint64_t kDirectory = 16 << 12;
  static constexpr uint64_t kTable = 17 << 12;

  void SetUp() override {
    ASSERT_TRUE(Image::create(file_, {.size = 1 << 20, .cluster_size = 4096}));
    header_ = *read_header(file_);
    ASSERT_TRUE(file_.resize(20 << 12));
    poke(file_, kDirectory, kTable);
    poke(file_, kDirectory + 8, uint32_t{2});   // entries
    poke(file_, kDirectory + 12, uint32_t{2});  // flags: automatic
    poke(file_, kDirectory + 16, uint8_t{1});
    poke(file_, kDirectory + 17, uint8_t{16});
    poke(file_, kDirectory + 18, uint16_t{5});
    poke_bytes(file_, kDirectory + 24, "dirty");
    poke(file_, kTable, uint64_t{18 << 12});
    poke(file_, kTable + 8, uint64_t{1});
  }
  void expect_refused(const std::string& message) {
    const auto clusters = bitmap_clusters(file_, header_, extension_);
    ASSERT_FALSE(clusters);
    EXPECT_EQ(clusters.error().kind, ErrorKind::kCorrupt);
    EXPECT_THAT(clusters.error().message, HasSubstr("disk.qcow2: "));
    EXPECT_THAT(clusters.error().message, HasSubstr(message));
    EXPECT_TRUE(clusters.error().offset.has_value());
  }

  MemoryDevice file_{"disk.qcow2"};
  Header header_;
  BitmapsExtension extension_{1, 32, kDirectory};
};

TEST_F(BitmapDirectory, IsReadWithItsTablesAndData) {
  const auto bitmaps = read_bitmap_directory(file_, header_, extension_);
  ASSERT_TRUE(bitmaps) << bitmaps.error().message;
  ASSERT_EQ(bitmaps->size(), 1u);
  EXPECT_EQ((*bitmaps)[0].name, "dirty");
  EXPECT_EQ((*bitmaps)[0].granularity, 65536u);
  EXPECT_TRUE((*bitmaps)[0].automatic);
  EXPECT_FALSE((*bitmaps)[0].in_use);
  using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
  EXPECT_EQ(*bitmap_clusters(file_, header_, extension_), (Ranges{{16, 1}, {17, 1}, {18, 1}}));
}

TEST_F(BitmapDirectory, EntriesMustEndWithIt) {
  extension_.directory_size = 28;
  expect_refused("dirty bitmap 0: its entry runs past the bitmap directory");
  extension_.directory_size = 20;
  expect_refused("dirty bitmap 0: its entry runs past the bitmap directory");
  extension_.directory_size = 32;
  poke(file_, kDirectory + 20, ~uint32_t{0});  // extra data
  expect_refused("dirty bitmap 0: its entry runs past the bitmap directory");
  poke(file_, kDirectory + 20, uint32_t{0});
  extension_.nb_bitmaps = 2;
  expect_refused("dirty bitmap 1: its entry runs past the bitmap directory");
}

TEST_F(BitmapDirectory, NamesAndGranularitiesAreLimited) {
  poke(file_, kDirectory + 18, uint16_t{0});
  expect_refused("its name is empty or too long");
  extension_.directory_size = 2048;
  poke(file_, kDirectory + 18, uint16_t{1024});
  expect_refused("its name is empty or too long");
  poke(file_, kDirectory + 18, uint16_t{5});
  poke(file_, kDirectory + 17, uint8_t{64});
  expect_refused("its granularity of 2^64 bytes is outside of 2^9 to 2^31");
  poke(file_, kDirectory + 17, uint8_t{8});
  expect_refused("its granularity of 2^8 bytes is outside");
  poke(file_, kDirectory + 17, uint8_t{32});
  expect_refused("its granularity of 2^32 bytes is outside");
}

TEST_F(BitmapDirectory, HoldsAsManyBitmapsAsTheHeaderSaysAndEachNameOnce) {
  std::vector<std::byte> entry(32);
  ASSERT_TRUE(file_.read_at(kDirectory, entry));
  ASSERT_TRUE(file_.write_at(kDirectory + 32, entry));
  extension_.directory_size = 64;
  expect_refused("the bitmap directory holds more than the 1 bitmaps of the header extension");
  extension_.nb_bitmaps = 2;
  expect_refused("dirty bitmap 1: another one has its name");
  poke_bytes(file_, kDirectory + 32 + 24, "other");
  EXPECT_TRUE(bitmap_clusters(file_, header_, extension_));
}

TEST_F(BitmapDirectory, TablesMustBeAlignedAndInTheFile) {
  poke(file_, kDirectory, kTable + 8);
  expect_refused("its table is misaligned or overlaps the header");
  poke(file_, kDirectory, uint64_t{0});
  expect_refused("its table is misaligned or overlaps the header");
  poke(file_, kDirectory, uint64_t{1} << 40);
  expect_refused("its table lies outside of the file");
  poke(file_, kDirectory, ~uint64_t{0} - 4095);
  expect_refused("its table lies outside of the file");
  poke(file_, kDirectory, kTable);
  poke(file_, kDirectory + 8, uint32_t{100000});
  expect_refused("its table lies outside of the file");
}

TEST_F(BitmapDirectory, TablesAreLimitedOneByOneAndTogether) {
  poke(file_, kDirectory + 8, ~uint32_t{0});
  expect_refused("its table is too large");
  // 65 bitmaps of 131,072 entries each, all with the very same table.
  ASSERT_TRUE(file_.resize(4 << 20));
  extension_.nb_bitmaps = 65;
  extension_.directory_size = uint64_t{65} * 32;
  poke(file_, kDirectory + 8, uint32_t{131072});
  std::vector<std::byte> entry(32);
  ASSERT_TRUE(file_.read_at(kDirectory, entry));
  for (uint64_t i = 0; i < 65; ++i) {
    entry[24] = static_cast<std::byte>(i);  // in the name
    ASSERT_TRUE(file_.write_at((3 << 20) + i * 32, entry));
  }
  extension_.directory_offset = 3 << 20;
  expect_refused("dirty bitmap 32: the tables of all bitmaps are too large together");
}

TEST_F(BitmapDirectory, DataMustBeAligned) {
  poke(file_, kTable, uint64_t{(18 << 12) + 512});
  expect_refused("dirty bitmap 'dirty': its data is not cluster-aligned");
}

TEST_F(BitmapDirectory, MustEndWithTheFile) {
  extension_.directory_size = 8 << 12;
  expect_refused("the bitmap directory runs past the end of the file");
}

}  // namespace
}  // namespace varve::qcow2
