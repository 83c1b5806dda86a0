#include <gtest/gtest.h>

#include "base/endian.h"
#include "io/memory_device.h"
#include "qcow2/image.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kEntryOfThird = uint64_t{3} * 8;

uint64_t word_at(MemoryDevice& file, uint64_t offset) {
  std::array<std::byte, 8> bytes{};
  EXPECT_TRUE(file.read_at(offset, bytes));
  return load_be<uint64_t>(bytes.data());
}

void set_word(MemoryDevice& file, uint64_t offset, uint64_t value) {
  std::array<std::byte, 8> bytes{};
  store_be<uint64_t>(bytes.data(), value);
  EXPECT_TRUE(file.write_at(offset, bytes));
}

std::vector<std::byte> whole(MemoryDevice& file) {
  std::vector<std::byte> bytes(*file.size());
  EXPECT_TRUE(file.read_at(0, bytes));
  return bytes;
}

struct Places {
  uint64_t l1 = 0;
  uint64_t l2 = 0;
  uint64_t refcount_table = 0;
  uint64_t refcount_block = 0;
};

// A disk whose first four clusters are written, and where its metadata lies.
Places make_image(MemoryDevice& file, bool extended) {
  EXPECT_TRUE(Image::create(file, {.size = 1 << 20, .cluster_size = extended ? 16384 : kCluster, .extended_l2 = extended}));
  const std::shared_ptr<BlockDevice> view(&file, [](BlockDevice*) {});
  const auto image = *Image::open(view, {.writable = true});
  EXPECT_TRUE(image->write_at(0, std::vector<std::byte>(4 * image->header().cluster_size(), std::byte{7})));
  EXPECT_TRUE(image->flush());
  Places places{.l1 = image->header().l1_table_offset, .refcount_table = image->header().refcount_table_offset};
  places.l2 = word_at(file, places.l1) & 0x00fffffffffffe00;
  places.refcount_block = word_at(file, places.refcount_table);
  return places;
}

// Whatever is done to the third cluster, whose entry names `place`: refused, and the place stays as it is.
void expect_refused(MemoryDevice& file, uint64_t place) {
  const std::vector<std::byte> before = whole(file);
  const std::shared_ptr<BlockDevice> view(&file, [](BlockDevice*) {});
  const auto opened = Image::open(view, {.writable = true});
  ASSERT_TRUE(opened) << opened.error().message;
  Image& image = **opened;
  const uint64_t size = image.header().cluster_size();
  const std::vector<std::byte> data(size, std::byte{9});
  const Result<void> results[] = {image.write_at(3 * size, data),
                                  image.write_at(3 * size + 512, std::span(data).first(512)),
                                  image.write_at(0, std::vector<std::byte>(8 * size, std::byte{9})),
                                  image.write_zeroes(3 * size, size, ZeroMode::kMayUnmap),
                                  image.discard(3 * size, size)};
  for (const Result<void>& result : results) {
    EXPECT_FALSE(result);
    if (!result) {
      EXPECT_EQ(result.error().kind, ErrorKind::kCorrupt) << result.error().message;
    }
  }
  (void)image.flush();
  const std::vector<std::byte> after = whole(file);
  ASSERT_GE(after.size(), place + 64);
  EXPECT_TRUE(std::equal(before.begin() + static_cast<ptrdiff_t>(place),
                         before.begin() + static_cast<ptrdiff_t>(place) + 24,
                         after.begin() + static_cast<ptrdiff_t>(place)));
}

TEST(MetadataOverlap, GuestDataIsNotWrittenOverMetadata) {
  for (const bool extended : {false, true}) {
    MemoryDevice good("good");
    const Places places = make_image(good, extended);
    for (const uint64_t place : {places.l1, places.l2, places.refcount_table, places.refcount_block}) {
      SCOPED_TRACE(testing::Message() << "extended " << extended << ", place " << place);
      const auto file = good.clone();
      set_word(*file, places.l2 + kEntryOfThird * (extended ? 2 : 1), place | uint64_t{1} << 63);
      expect_refused(*file, place);
    }
  }
}

TEST(MetadataOverlap, NothingIsAllocatedWhereMetadataLies) {
  MemoryDevice good("good");
  const Places places = make_image(good, false);
  for (const uint64_t place : {places.l1, places.l2, places.refcount_table, places.refcount_block}) {
    SCOPED_TRACE(place);
    const auto file = good.clone();
    // Its refcount says that it is free.
    ASSERT_TRUE(file->write_at(places.refcount_block + place / kCluster * 2, std::vector<std::byte>(2)));
    const std::vector<std::byte> before = whole(*file);
    const std::shared_ptr<BlockDevice> view(file.get(), [](BlockDevice*) {});
    const auto image = *Image::open(view, {.writable = true});
    const Result<void> written = image->write_at(100 * kCluster, std::vector<std::byte>(kCluster, std::byte{9}));
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().kind, ErrorKind::kCorrupt) << written.error().message;
    const std::vector<std::byte> after = whole(*file);
    EXPECT_TRUE(std::equal(before.begin() + static_cast<ptrdiff_t>(place),
                           before.begin() + static_cast<ptrdiff_t>(place) + 24,
                           after.begin() + static_cast<ptrdiff_t>(place)));
  }
}

}  // namespace
}  // namespace varve::qcow2
