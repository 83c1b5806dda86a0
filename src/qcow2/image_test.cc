#include "qcow2/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <random>
#include <thread>

#include "io/fault_device.h"
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

// A guest writes in any order, and so clusters lie in the file; given back they are a few stretches of it.
TEST(Qcow2Image, ClustersThatAreFreedInAnyOrderAreDiscardedTogether) {
  const auto file = std::make_shared<FaultDevice>(
      new_image({.size = 4 << 20, .backing_file = "base", .backing_format = "raw"})->clone());
  {
    const auto image = open_image(file);
    for (const uint64_t cluster : {7u, 3u, 12u, 0u, 9u, 5u, 1u, 11u})
      ASSERT_TRUE(image->write_at(cluster << 16, pattern(65536, 1)));
    ASSERT_TRUE(image->flush());
    file->control().start_over();
    ASSERT_TRUE(image->make_empty());
  }
  EXPECT_EQ(file->control().calls(kOpDiscard), 1u);
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
      for (uint64_t at = uint64_t{t} * 512; at < (4 << 20); at += 2048) EXPECT_TRUE(image->write_at(at, data));
    });
  std::thread flusher([&image] {
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(image->flush());
  });
  for (auto& t : threads) t.join();
  flusher.join();
  const auto all = read_all(*image);
  for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], static_cast<std::byte>(i / 512 % 4 + 1)) << i;
}

TEST(Qcow2Image, AFirstWriteToAPartOfAClusterLeavesTheFileWithWholeClusters) {
  const auto file = new_image({.size = 1 << 20});
  const auto image = open_image(file);
  const auto data = pattern(100, 3);
  ASSERT_TRUE(image->write_at(65536 + 1000, data));
  ASSERT_TRUE(image->flush());
  EXPECT_EQ(*file->size() % 65536, 0u);
  std::vector<std::byte> expected(1 << 20);
  std::memcpy(&expected[65536 + 1000], data.data(), data.size());
  EXPECT_EQ(read_all(*image), expected);
}

// Each thread has a part of the disk for itself; the borders lie within clusters.
TEST(Qcow2Image, ThreadsThatWriteZeroAndDiscardSideBySideAgreeWithAModel) {
  constexpr uint64_t kPart = (512 << 10) + 1536;
  constexpr uint64_t kCluster = 4096;
  const auto file = new_image({.size = 4 * kPart, .cluster_size = kCluster});
  const auto image = open_image(file);
  const auto live = [&](unsigned part) {
    std::mt19937_64 random(part);
    std::vector<std::byte> model(kPart);
    for (int step = 0; step < 300; ++step) {
      const bool whole = random() % 2 == 0;
      const uint64_t base = part * kPart;
      uint64_t offset = random() % kPart;
      uint64_t length = std::min(kPart - offset, 1 + random() % (whole ? 16 * kCluster : kCluster));
      if (whole) {  // from a border of the disk's clusters to another one, where there is room for that
        const uint64_t begin = std::min((base + offset + kCluster - 1) / kCluster * kCluster - base, kPart - 1);
        length = std::max<uint64_t>(std::min(length, kPart - begin) / kCluster * kCluster, 1);
        offset = begin;
      }
      switch (random() % 8) {
        case 0:
          EXPECT_TRUE(image->write_zeroes(base + offset, length, ZeroMode::kMayUnmap));
          std::memset(&model[offset], 0, length);
          break;
        case 1:
          EXPECT_TRUE(image->flush());
          break;
        default: {
          const auto data = pattern(length, static_cast<unsigned>(random()));
          EXPECT_TRUE(image->write_at(base + offset, data));
          std::memcpy(&model[offset], data.data(), length);
        }
      }
    }
    std::vector<std::byte> now(kPart);
    EXPECT_TRUE(image->read_at(part * kPart, now));
    EXPECT_TRUE(now == model) << "part " << part;
    return model;
  };
  std::vector<std::vector<std::byte>> models(4);
  std::vector<std::thread> threads;
  for (unsigned part = 0; part < 4; ++part) threads.emplace_back([&, part] { models[part] = live(part); });
  for (auto& t : threads) t.join();
  ASSERT_TRUE(image->flush());
  const auto all = read_all(*open_image(file, false));
  for (size_t part = 0; part < 4; ++part)
    EXPECT_EQ(std::memcmp(&all[part * kPart], models[part].data(), kPart), 0) << "part " << part;
}

// Holds back one write of guest data until the file is about to get another size.
class HeldBack final : public BlockDevice {
 public:
  explicit HeldBack(std::shared_ptr<BlockDevice> below) : below_(std::move(below)) {}

  void hold_next_write_of(size_t bytes) { held_bytes_ = bytes; }
  void wait_until_held() { held_.get_future().wait(); }
  bool resized_beside_it() const { return resized_beside_it_; }

  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    if (data.size() != held_bytes_.load()) return below_->write_at(offset, data);
    held_bytes_ = 0;
    held_.set_value();
    resizing_.get_future().wait();
    Result<void> written = below_->write_at(offset, data);
    written_.set_value();
    return written;
  }
  Result<void> resize(uint64_t new_size) override {
    if (!resized_beside_it_) {
      resized_beside_it_ = true;
      resizing_.set_value();
      written_.get_future().wait();
    }
    return below_->resize(new_size);
  }
  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    return below_->read_at(offset, buffer);
  }
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return below_->write_zeroes(offset, length, mode);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return below_->discard(offset, length); }
  Result<void> flush() override { return below_->flush(); }
  Result<uint64_t> size() override { return below_->size(); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    return below_->extents(offset, length);
  }
  DeviceCapabilities capabilities() const override { return below_->capabilities(); }
  const std::string& name() const override { return below_->name(); }

 private:
  std::shared_ptr<BlockDevice> below_;
  std::atomic<size_t> held_bytes_ = 0;
  std::promise<void> held_;
  std::promise<void> resizing_;
  std::promise<void> written_;
  bool resized_beside_it_ = false;
};

// The file is made longer, for a cluster written in part, while other clusters are being written behind its end.
TEST(Qcow2Image, WhatIsBeingWrittenIsNotCutOffWhenTheFileGrows) {
  constexpr uint64_t kTables = (32 << 20) / 512;  // as many as may be dirty
  constexpr uint64_t kPerTable = uint64_t{64} * 512;
  const auto memory = new_image({.size = (kTables + 1) * kPerTable, .cluster_size = 512});
  const auto file = std::make_shared<HeldBack>(memory);
  const auto image = open_image(file);
  ASSERT_TRUE(image->write_at(uint64_t{8} * 512, pattern(512, 1)));
  const auto in_part = pattern(100, 5);
  for (uint64_t table = 0; table < kTables; ++table) ASSERT_TRUE(image->write_at(table * kPerTable, in_part));
  const auto data = pattern(size_t{20} * 512, 6);
  file->hold_next_write_of(data.size());
  std::thread writer([&] { EXPECT_TRUE(image->write_at(kTables * kPerTable, data)); });
  file->wait_until_held();
  ASSERT_TRUE(image->write_zeroes(uint64_t{8} * 512, 512, ZeroMode::kMayUnmap));  // now there are too many dirty tables
  writer.join();
  EXPECT_TRUE(file->resized_beside_it());
  ASSERT_TRUE(image->flush());
  const auto reopened = open_image(memory, false);
  std::vector<std::byte> now(data.size());
  ASSERT_TRUE(reopened->read_at(kTables * kPerTable, now));
  EXPECT_EQ(now, data);
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
