// Guest data on another device than the metadata: an external data file, and a device that encrypts.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <utility>

#include "io/memory_device.h"
#include "qcow2/cluster_intervals.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kDiskSize = (uint64_t{3} << 20) + 512;

// What encryption does to the seam: bytes differ by their place in the file, and what nobody wrote reads as garbage.
class Scrambled final : public BlockDevice {
 public:
  explicit Scrambled(std::shared_ptr<BlockDevice> below) : below_(std::move(below)) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    TRY(below_->read_at(offset, buffer));
    scramble(offset, buffer);
    return {};
  }
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    std::vector<std::byte> copy(data.begin(), data.end());
    scramble(offset, copy);
    return below_->write_at(offset, copy);
  }
  Result<void> write_zeroes(uint64_t, uint64_t, ZeroMode) override {
    ADD_FAILURE() << "zeroes are data where data is encrypted";
    return make_error(ErrorKind::kUnsupported, "zeroes");
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return below_->discard(offset, length); }
  Result<void> flush() override { return below_->flush(); }
  Result<uint64_t> size() override { return below_->size(); }
  Result<void> resize(uint64_t new_size) override { return below_->resize(new_size); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    return below_->extents(offset, length);
  }
  DeviceCapabilities capabilities() const override { return below_->capabilities(); }
  const std::string& name() const override { return below_->name(); }

 private:
  static void scramble(uint64_t offset, std::span<std::byte> bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] ^= static_cast<std::byte>((offset + i) * 2654435761u >> 13 | 1);
  }
  std::shared_ptr<BlockDevice> below_;
};

// The guest's disk and what it should hold, through random writes, zeroes, discards, resizes and reopening.
struct Shape {
  bool separate = false;
  bool raw = false;
  bool extended = false;
  bool has_backing = false;
  bool old_aes = false;
};

std::shared_ptr<crypto::EncryptedDevice> encrypt(std::shared_ptr<BlockDevice> below) {
  const crypto::CipherSpec spec{crypto::CipherAlgorithm::kAes128, crypto::CipherMode::kCbc,
                                crypto::IvGenerator::kPlain64};
  const std::vector<std::byte> key(spec.key_bytes(), std::byte{7});
  return std::make_shared<crypto::EncryptedDevice>(std::move(below), *crypto::SectorCipher::make(spec, key));
}

class Qcow2DataDevice : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    CreateOptions options{.size = kDiskSize, .cluster_size = 16384, .extended_l2 = GetParam().extended};
    if (GetParam().separate) options.data_file = "data";
    options.data_file_raw = GetParam().raw;
    options.old_aes_encryption = GetParam().old_aes;
    if (GetParam().has_backing) {
      options.backing_file = "base";
      options.backing_format = "raw";
      std::vector<std::byte> old(1 << 20, std::byte{0xba});
      ASSERT_TRUE(backing_->write_at(0, old));
      std::ranges::copy(old, model_.begin());
    }
    ASSERT_TRUE(Image::create(*file_, options));
    if (GetParam().separate)
      data_ = std::make_shared<MemoryDevice>("data", kDiskSize);
    else if (!GetParam().old_aes)
      data_ = std::make_shared<Scrambled>(file_);
    if (GetParam().old_aes) encrypted_ = encrypt(data_ != nullptr ? std::exchange(data_, nullptr) : file_);
    open(true);
  }

  void open(bool writable) {
    image_.reset();
    auto image = Image::open(file_, {.writable = writable, .data = data_, .encrypted = encrypted_});
    ASSERT_TRUE(image) << image.error().message;
    image_ = std::move(*image);
    if (GetParam().has_backing) image_->set_backing(backing_);
  }

  void check() {
    std::vector<std::byte> seen(*image_->size());
    ASSERT_EQ(seen.size(), model_.size());
    ASSERT_TRUE(image_->read_at(0, seen));
    const auto differs = std::mismatch(seen.begin(), seen.end(), model_.begin()).first - seen.begin();
    ASSERT_TRUE(seen == model_) << "first at " << differs << " of " << seen.size();
    if (!GetParam().raw) return;
    ASSERT_EQ(*data_->size(), model_.size());
    ASSERT_TRUE(data_->read_at(0, seen));
    ASSERT_TRUE(seen == model_) << "as a raw image";
  }

  void change_something() {
    const uint64_t offset = random_() % model_.size();
    const uint64_t most = std::min<uint64_t>(random_() % 4 == 0 ? 200000 : 20000, model_.size() - offset);
    const uint64_t length = random_() % most + 1;
    const uint64_t what = random_() % 8;
    if (what < 4) {
      std::vector<std::byte> bytes(length, static_cast<std::byte>(random_()));
      ASSERT_TRUE(image_->write_at(offset, bytes));
      std::ranges::copy(bytes, model_.begin() + static_cast<ptrdiff_t>(offset));
    } else if (what < 7) {
      ASSERT_TRUE(image_->write_zeroes(offset, length, what == 4 ? ZeroMode::kKeepAllocated : ZeroMode::kMayUnmap));
      std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), length, std::byte{0});
    } else {
      ASSERT_TRUE(image_->discard(offset, length));
      std::vector<std::byte> now(length);  // zeroes, or what was there
      ASSERT_TRUE(image_->read_at(offset, now));
      std::ranges::copy(now, model_.begin() + static_cast<ptrdiff_t>(offset));
    }
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("image");
  std::shared_ptr<MemoryDevice> backing_ = std::make_shared<MemoryDevice>("base");
  std::shared_ptr<BlockDevice> data_;
  std::shared_ptr<crypto::EncryptedDevice> encrypted_;
  std::unique_ptr<Image> image_;
  std::vector<std::byte> model_ = std::vector<std::byte>(kDiskSize);
  std::mt19937 random_{20};
};

TEST_P(Qcow2DataDevice, HoldsWhatWasWrittenThroughRandomChanges) {
  for (int round = 0; round < 300; ++round) {
    ASSERT_NO_FATAL_FAILURE(change_something());
    if (round % 7 == 0) {
      ASSERT_TRUE(image_->flush());
    }
    if (round % 50 == 49) {
      const uint64_t size = (kDiskSize + random_() % 3000000) / 512 * 512;
      ASSERT_TRUE(image_->resize(size));
      model_.resize(size);
    }
    if (round % 20 == 19) {
      ASSERT_NO_FATAL_FAILURE(open(false));
      ASSERT_NO_FATAL_FAILURE(check());
      ASSERT_NO_FATAL_FAILURE(open(true));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Qcow2DataDevice,
                         testing::Values(Shape{}, Shape{.extended = true}, Shape{.has_backing = true},
                                         Shape{.extended = true, .has_backing = true}, Shape{.separate = true},
                                         Shape{.separate = true, .extended = true},
                                         Shape{.separate = true, .has_backing = true},
                                         Shape{.separate = true, .extended = true, .has_backing = true},
                                         Shape{.separate = true, .raw = true},
                                         Shape{.separate = true, .raw = true, .extended = true}, Shape{.old_aes = true},
                                         Shape{.extended = true, .has_backing = true, .old_aes = true},
                                         Shape{.separate = true, .has_backing = true, .old_aes = true}));

// The same cluster under another guest offset would be noise: sectors are numbered by the disk, not by the file.
TEST(Qcow2OldAes, NumbersSectorsByTheGuestsOffset) {
  auto file = std::make_shared<MemoryDevice>("image");
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 20, .old_aes_encryption = true}));
  constexpr uint64_t kGuest = uint64_t{2} * 65536;  // where the file has something else
  const std::vector<std::byte> data(65536, std::byte{0x42});
  std::vector<std::byte> expected(data.size());
  {
    const auto image = *Image::open(file, {.writable = true, .encrypted = encrypt(file)});
    ASSERT_TRUE(image->write_at(kGuest, data));
    ASSERT_TRUE(image->flush());
    const auto extents = image->placed_extents(kGuest, 65536);
    ASSERT_TRUE(extents);
    ASSERT_NE(extents->front().host_offset, kGuest);
    // As if the file were the disk.
    ASSERT_TRUE(encrypt(file)->read_numbered(*extents->front().host_offset, kGuest, expected));
  }
  EXPECT_EQ(expected, data);
}

TEST(Qcow2OldAes, AKeyForWhatIsNotEncryptedIsRefused) {
  auto file = std::make_shared<MemoryDevice>("image");
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 20}));
  EXPECT_FALSE(Image::open(file, {.encrypted = encrypt(file)}));
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 20, .old_aes_encryption = true}));
  EXPECT_FALSE(Image::open(file, {.data = std::make_shared<MemoryDevice>("data")}));
}

std::shared_ptr<MemoryDevice> new_image_with_data_file() {
  auto file = std::make_shared<MemoryDevice>("image");
  EXPECT_TRUE(Image::create(*file, {.size = 1 << 20, .data_file = "data"}));
  return file;
}

TEST(Qcow2DataFile, DataHasTheGuestsOwnOffsetAndTheImageOnlyTables) {
  const auto file = new_image_with_data_file();
  const auto data = std::make_shared<MemoryDevice>("data");
  const auto image = *Image::open(file, {.writable = true, .data = data});
  const uint64_t clusters = *image->used_clusters(1000);
  const std::vector<std::byte> bytes(300000, std::byte{0x5a});
  ASSERT_TRUE(image->write_at(0, bytes));
  ASSERT_TRUE(image->flush());
  EXPECT_EQ(*image->used_clusters(1000), clusters + 1);  // one L2 table
  std::vector<std::byte> seen(bytes.size());
  ASSERT_TRUE(data->read_at(0, seen));
  EXPECT_EQ(seen, bytes);
  EXPECT_EQ(image->placed_extents(0, 1)->at(0).host_offset, 0u);
}

TEST(Qcow2DataFile, WithoutItOnlyMetadataIsRead) {
  const auto file = new_image_with_data_file();
  EXPECT_FALSE(Image::open(file, {.writable = true}));
  const auto image = *Image::open(file, {});
  EXPECT_EQ(*image->header().data_file, "data");
  std::vector<std::byte> buffer(512);
  EXPECT_EQ(image->read_at(0, buffer).error().kind, ErrorKind::kUnsupported);
}

TEST(Qcow2DataFile, TakesNoSnapshotsAndNoCompressedClusters) {
  const auto image =
      *Image::open(new_image_with_data_file(), {.writable = true, .data = std::make_shared<MemoryDevice>("data")});
  EXPECT_EQ(SnapshotTransaction::begin(*image).error().kind, ErrorKind::kUnsupported);
  const std::vector<std::byte> cluster(65536);
  EXPECT_EQ(image->write_compressed(0, cluster).error().kind, ErrorKind::kUnsupported);
}

TEST(Qcow2DataFile, WhatIsWrittenAfterADiscardStays) {
  const auto data = std::make_shared<MemoryDevice>("data");
  const auto image = *Image::open(new_image_with_data_file(), {.writable = true, .data = data});
  const std::vector<std::byte> old(size_t{4} * 65536, std::byte{1});
  const std::vector<std::byte> fresh(65536, std::byte{2});
  ASSERT_TRUE(image->write_at(0, old));
  ASSERT_TRUE(image->flush());
  ASSERT_TRUE(image->discard(0, old.size()));
  ASSERT_TRUE(image->write_at(65536, fresh));
  ASSERT_TRUE(image->flush());
  std::vector<std::byte> seen(fresh.size());
  ASSERT_TRUE(image->read_at(65536, seen));
  EXPECT_EQ(seen, fresh);
  ASSERT_TRUE(data->read_at(0, seen));
  EXPECT_EQ(seen, std::vector<std::byte>(65536));
}

TEST(Qcow2DataFile, EntriesThatNameAnotherPlaceOrCompressedDataAreCorrupt) {
  for (const uint64_t entry : {kEntryCopied | uint64_t{65536}, kEntryCompressed | uint64_t{4096}}) {
    const auto file = new_image_with_data_file();
    const auto data = std::make_shared<MemoryDevice>("data", 1 << 20);
    const std::vector<std::byte> bytes(512, std::byte{1});
    {
      const auto image = *Image::open(file, {.writable = true, .data = data});
      ASSERT_TRUE(image->write_at(0, bytes));
    }
    be64 l1, l2(entry);
    const uint64_t l1_at = (*Image::open(file, {}))->header().l1_table_offset;
    ASSERT_TRUE(file->read_at(l1_at, std::as_writable_bytes(std::span(&l1, 1))));
    ASSERT_TRUE(file->write_at(l1 & kOffsetMask, std::as_bytes(std::span(&l2, 1))));
    const auto image = *Image::open(file, {.writable = true, .data = data});
    std::vector<std::byte> buffer(512);
    EXPECT_EQ(image->read_at(0, buffer).error().kind, ErrorKind::kCorrupt);
    EXPECT_EQ(image->write_at(0, buffer).error().kind, ErrorKind::kCorrupt);
    EXPECT_EQ(image->write_zeroes(0, 65536, ZeroMode::kMayUnmap).error().kind, ErrorKind::kCorrupt);
  }
}

TEST(ClusterIntervals, AreWhatASetOfClustersWouldBe) {
  std::mt19937 random(5);
  ClusterIntervals intervals;
  std::vector<bool> model(300);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t first = random() % 250;
    const uint64_t count = random() % 50 + 1;
    const bool in = random() % 2 != 0;
    if (in)
      intervals.insert(first, count);
    else
      intervals.erase(first, count);
    std::fill_n(model.begin() + static_cast<ptrdiff_t>(first), count, in);
    if (round % 10 != 9) continue;
    std::vector<bool> seen(model.size());
    uint64_t last_end = 0;
    for (const auto& [from, end] : intervals.take()) {
      EXPECT_TRUE(last_end == 0 || from > last_end);
      std::fill(seen.begin() + static_cast<ptrdiff_t>(from), seen.begin() + static_cast<ptrdiff_t>(end), true);
      last_end = end;
    }
    EXPECT_EQ(seen, model);
    EXPECT_TRUE(intervals.empty());
    std::fill(model.begin(), model.end(), false);
  }
}

}  // namespace
}  // namespace varve::qcow2
