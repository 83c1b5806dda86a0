#include "qcow2/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "io/memory_device.h"
#include "qcow2/refcounts.h"

namespace varve::qcow2 {
namespace {

std::vector<std::byte> pattern(size_t bytes, unsigned seed) {
  std::vector<std::byte> out(bytes);
  std::mt19937 random(seed);
  for (auto& b : out) b = static_cast<std::byte>(random());
  return out;
}

std::unique_ptr<Image> open_image(const std::shared_ptr<BlockDevice>& file, bool writable = true) {
  auto image = Image::open(file, {.writable = writable});
  EXPECT_TRUE(image) << image.error().message;
  return image ? std::move(*image) : nullptr;
}

std::shared_ptr<MemoryDevice> new_image(const CreateOptions& options) {
  auto file = std::make_shared<MemoryDevice>("test.qcow2");
  auto r = Image::create(*file, options);
  EXPECT_TRUE(r) << r.error().message;
  return file;
}

std::vector<std::byte> read_all(BlockDevice& device) {
  std::vector<std::byte> out(*device.size());
  auto r = device.read_at(0, out);
  EXPECT_TRUE(r) << r.error().message;
  return out;
}

TEST(Qcow2Image, FreshImageReadsAsZeroes) {
  const auto image = open_image(new_image({.size = 1 << 20}));
  EXPECT_EQ(read_all(*image), std::vector<std::byte>(1 << 20));
  EXPECT_EQ(*image->extents(0, 1 << 20), (std::vector<Extent>{{0, 1 << 20, ExtentKind::kUnallocated}}));
}

TEST(Qcow2Image, WhatIsWrittenIsReadAfterReopening) {
  const auto file = new_image({.size = 1 << 20});
  const auto data = pattern(100000, 1);
  {
    const auto image = open_image(file);
    ASSERT_TRUE(image->write_at(12345, data));
    ASSERT_TRUE(image->flush());
  }
  const auto image = open_image(file, false);
  std::vector<std::byte> back(data.size());
  ASSERT_TRUE(image->read_at(12345, back));
  EXPECT_EQ(back, data);
}

TEST(Qcow2Image, CopyOnWriteTakesTheRestOfTheClusterFromTheBackingFile) {
  auto backing = std::make_shared<MemoryDevice>("base", 300000);
  const auto old = pattern(300000, 2);
  ASSERT_TRUE(backing->write_at(0, old));
  const auto image = open_image(new_image({.size = 1 << 20, .backing_file = "base", .backing_format = "raw"}));
  image->set_backing(backing);
  const auto data = pattern(1000, 3);
  ASSERT_TRUE(image->write_at(262144 + 5000, data));  // the backing file ends inside of this cluster
  std::vector<std::byte> expected(1 << 20);
  std::memcpy(expected.data(), old.data(), old.size());
  std::memcpy(&expected[262144 + 5000], data.data(), data.size());
  EXPECT_EQ(read_all(*image), expected);
}

TEST(Qcow2Image, ReadAndWriteOutsideOfTheDiskAreRefused) {
  const auto image = open_image(new_image({.size = 1 << 20}));
  std::vector<std::byte> buffer(512);
  EXPECT_EQ(image->read_at((1 << 20) - 100, buffer).error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(image->write_at(~uint64_t{0} - 100, buffer).error().kind, ErrorKind::kInvalidArgument);
}

TEST(Qcow2Image, DirtyAndCorruptImagesOpenForReadingOnly) {
  for (const uint64_t bit : {kIncompatDirty, kIncompatCorrupt}) {
    const auto file = new_image({.size = 1 << 20});
    const std::byte features{static_cast<unsigned char>(bit)};
    ASSERT_TRUE(file->write_at(79, std::span(&features, 1)));
    EXPECT_TRUE(Image::open(file, {.writable = false}));
    const auto refused = Image::open(file, {.writable = true});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::kCorrupt);
    EXPECT_THAT(refused.error().notes, testing::Contains(testing::HasSubstr("qemu-img check -r all")));
  }
}

TEST(Qcow2Image, UnknownAutoclearBitsAreClearedBeforeAWrite) {
  const auto file = new_image({.size = 1 << 20});
  const std::byte bits{0x80};
  ASSERT_TRUE(file->write_at(95, std::span(&bits, 1)));
  open_image(file, false);
  std::byte now{};
  ASSERT_TRUE(file->read_at(95, std::span(&now, 1)));
  EXPECT_EQ(now, bits);
  open_image(file, true);
  ASSERT_TRUE(file->read_at(95, std::span(&now, 1)));
  EXPECT_EQ(now, std::byte{0});
}

TEST(Qcow2Image, WritersOfDifferentPartsOfOneClusterDoNotLoseEachOthersBytes) {
  const auto file = new_image({.size = 4 << 20});
  const auto image = open_image(file);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&image, t] {
      std::vector<std::byte> data(512, static_cast<std::byte>(t + 1));
      for (uint64_t at = t * 512; at < (4 << 20); at += 2048) EXPECT_TRUE(image->write_at(at, data));
    });
  std::thread flusher([&image] {
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(image->flush());
  });
  for (auto& t : threads) t.join();
  flusher.join();
  const auto all = read_all(*image);
  for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], static_cast<std::byte>(i / 512 % 4 + 1)) << i;
}

struct Shape {
  uint64_t cluster_size;
  uint32_t version;
  uint32_t refcount_bits;
  bool extended_l2;
  bool backing;
  bool preallocate;
};

class RandomWrites : public testing::TestWithParam<Shape> {};

// Against a plain array, with a reopening now and then.
TEST_P(RandomWrites, AgreeWithAModel) {
  const Shape& shape = GetParam();
  const uint64_t size = std::min<uint64_t>(shape.cluster_size * 40, 6 << 20) + 512;
  CreateOptions options{.size = size,
                        .version = shape.version,
                        .cluster_size = shape.cluster_size,
                        .refcount_bits = shape.refcount_bits,
                        .extended_l2 = shape.extended_l2,
                        .preallocate_metadata = shape.preallocate};
  auto backing = std::make_shared<MemoryDevice>("base", size / 2);
  std::vector<std::byte> model(size);
  if (shape.backing) {
    options.backing_file = "base";
    options.backing_format = "raw";
    const auto base = pattern(size / 2, 7);
    ASSERT_TRUE(backing->write_at(0, base));
    std::memcpy(model.data(), base.data(), base.size());
  }
  const auto file = new_image(options);
  auto image = open_image(file);
  if (shape.backing) image->set_backing(backing);
  const unsigned seed = 20240611;
  std::mt19937_64 random(seed);
  for (int step = 0; step < 300; ++step) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << " step " << step);
    const uint64_t offset = random() % size;
    const uint64_t length =
        std::min(size - offset, random() % 3 == 0 ? random() % (3 * shape.cluster_size) + 1 : random() % 5000 + 1);
    switch (random() % 8) {
      case 0: {
        const auto mode = random() % 2 == 0 ? ZeroMode::kMayUnmap : ZeroMode::kKeepAllocated;
        ASSERT_TRUE(image->write_zeroes(offset, length, mode));
        std::memset(&model[offset], 0, length);
        break;
      }
      case 1: {
        const uint64_t begin = offset / shape.cluster_size * shape.cluster_size;
        const uint64_t bytes = std::min(size - begin, shape.cluster_size * (1 + random() % 3));
        if (shape.version == 2 && shape.backing) break;  // there a discard is only a hint
        ASSERT_TRUE(image->discard(begin, bytes));
        std::memset(&model[begin], 0, bytes);
        break;
      }
      case 2:
        ASSERT_TRUE(image->flush());
        break;
      case 3:
        if (random() % 10 == 0) {
          ASSERT_TRUE(image->flush());
          image = open_image(file);
          if (shape.backing) image->set_backing(backing);
        }
        break;
      default: {
        const auto data = pattern(length, static_cast<unsigned>(random()));
        ASSERT_TRUE(image->write_at(offset, data));
        std::memcpy(&model[offset], data.data(), data.size());
      }
    }
    std::vector<std::byte> part(std::min<uint64_t>(size, 20000));
    const uint64_t at = random() % (size - part.size() + 1);
    ASSERT_TRUE(image->read_at(at, part));
    ASSERT_EQ(std::memcmp(part.data(), &model[at], part.size()), 0);
  }
  ASSERT_TRUE(image->flush());
  image = open_image(file, false);
  if (shape.backing) image->set_backing(backing);
  EXPECT_EQ(read_all(*image), model);
}

INSTANTIATE_TEST_SUITE_P(Shapes, RandomWrites,
                         testing::Values(Shape{512, 3, 16, false, false, false}, Shape{512, 2, 16, false, true, false},
                                         Shape{4096, 3, 1, false, true, false}, Shape{4096, 3, 64, false, false, true},
                                         Shape{65536, 3, 16, false, true, false},
                                         Shape{65536, 2, 16, false, false, false},
                                         Shape{65536, 3, 16, true, true, false}, Shape{16384, 3, 8, true, false, true},
                                         Shape{2 << 20, 3, 32, false, false, false},
                                         Shape{1024, 3, 2, false, false, false},
                                         Shape{2048, 3, 4, false, true, false}));

TEST(Refcounts, AnImageThatOutgrowsItsRefcountTableMovesIt) {
  // 512-byte clusters: one refcount block counts 256 clusters, one table cluster names 64 blocks: 8 MiB of file.
  const auto file = new_image({.size = 12 << 20, .cluster_size = 512});
  auto image = open_image(file);
  const uint64_t before = image->header().refcount_table_offset;
  const auto data = pattern(12 << 20, 5);
  ASSERT_TRUE(image->write_at(0, data));
  ASSERT_TRUE(image->flush());
  EXPECT_NE(image->header().refcount_table_offset, before);
  image = open_image(file, false);
  EXPECT_EQ(read_all(*image), data);
}

}  // namespace
}  // namespace varve::qcow2
