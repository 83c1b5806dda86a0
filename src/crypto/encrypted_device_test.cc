#include "crypto/encrypted_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "io/memory_device.h"

namespace varve::crypto {
namespace {

using Bytes = std::vector<std::byte>;

struct Disk {
  std::shared_ptr<MemoryDevice> inner;
  std::unique_ptr<EncryptedDevice> device;
  std::unique_ptr<SectorCipher> cipher;  // a second one with the same key, for looking at the inner device

  // What the inner device holds, decrypted: a file that ends within a sector with zeroes behind.
  Bytes decrypted() const {
    Bytes bytes((*inner->size() + 511) / 512 * 512);
    EXPECT_TRUE(inner->read_at(0, std::span(bytes).first(*inner->size())));
    EXPECT_TRUE(cipher->decrypt(0, bytes, bytes));
    return bytes;
  }
};

Disk make_disk(uint64_t size, CipherMode mode = CipherMode::kXts) {
  const CipherSpec spec{CipherAlgorithm::kAes256, mode, IvGenerator::kPlain64, {}};
  Bytes key(spec.key_bytes());
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(i * 7);
  Disk disk;
  disk.inner = std::make_shared<MemoryDevice>("encrypted", size);
  disk.cipher = *SectorCipher::make(spec, key);
  disk.device = std::make_unique<EncryptedDevice>(disk.inner, *SectorCipher::make(spec, key));
  return disk;
}

class RandomIo : public testing::TestWithParam<CipherMode> {};

TEST_P(RandomIo, AgreesWithAModel) {
  constexpr uint64_t kSize = uint64_t{64} << 10;
  const Disk disk = make_disk(kSize, GetParam());
  Bytes model = disk.decrypted();
  std::mt19937_64 random(7);
  for (int step = 0; step < 2000; ++step) {
    const uint64_t offset = random() % kSize;
    const uint64_t longest = random() % 8 == 0 ? kSize : 1500;
    const uint64_t length = random() % (std::min(longest, kSize - offset) + 1);
    const auto kind = random() % 4;
    if (kind == 0) {
      ASSERT_TRUE(disk.device->write_zeroes(offset, length, ZeroMode::kMayUnmap));
      std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    } else if (kind == 1) {
      Bytes data(length);
      for (auto& b : data) b = static_cast<std::byte>(random());
      ASSERT_TRUE(disk.device->write_at(offset, data));
      std::ranges::copy(data, model.begin() + static_cast<std::ptrdiff_t>(offset));
    } else {
      Bytes data(length);
      ASSERT_TRUE(disk.device->read_at(offset, data));
      ASSERT_TRUE(std::ranges::equal(data, std::span(model).subspan(offset, length))) << "step " << step;
    }
  }
  EXPECT_EQ(disk.decrypted(), model);
}

INSTANTIATE_TEST_SUITE_P(EncryptedDevice, RandomIo, testing::Values(CipherMode::kXts, CipherMode::kCbc));

TEST(EncryptedDevice, NothingOfThePlainTextReachesTheDeviceBelow) {
  const Disk disk = make_disk(4096);
  const Bytes data(1000, std::byte{0x5a});
  ASSERT_TRUE(disk.device->write_at(100, data));
  Bytes raw(4096);
  ASSERT_TRUE(disk.inner->read_at(0, raw));
  const Bytes run(8, std::byte{0x5a});
  EXPECT_EQ(std::ranges::search(raw, run).begin(), raw.end());
}

TEST(EncryptedDevice, ReadsBehindTheEndAsDecryptedZeroes) {
  const Disk disk = make_disk(1000);  // ends within its second sector
  Bytes expected(size_t{512} * 4);
  ASSERT_TRUE(disk.cipher->decrypt(0, expected, expected));
  Bytes got(expected.size());
  ASSERT_TRUE(disk.device->read_at(0, got));
  EXPECT_EQ(got, expected);
}

TEST(EncryptedDevice, WriteZeroesDoesNotGoBehindTheEnd) {
  const Disk disk = make_disk(2048);
  ASSERT_TRUE(disk.device->write_zeroes(1000, 100000, ZeroMode::kKeepAllocated));
  EXPECT_EQ(*disk.device->size(), 2048u);
  const Bytes plain = disk.decrypted();
  EXPECT_TRUE(std::all_of(plain.begin() + 1000, plain.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(EncryptedDevice, AWriteAtTheEndGrowsTheDevice) {
  const Disk disk = make_disk(0);
  const Bytes data(700, std::byte{9});
  ASSERT_TRUE(disk.device->write_at(512, data));
  EXPECT_EQ(*disk.device->size(), 512u + 1024);
  Bytes got(700);
  ASSERT_TRUE(disk.device->read_at(512, got));
  EXPECT_EQ(got, data);
}

// What a disk shows does not depend on where it lies, if its sectors are numbered from its beginning.
TEST(EncryptedDevice, SectorsMayBeNumberedFromElsewhere) {
  for (const CipherMode mode : {CipherMode::kXts, CipherMode::kCbc}) {
    const Disk there = make_disk(uint64_t{64} << 10, mode);
    const Disk moved = make_disk(uint64_t{64} << 10, mode);
    constexpr uint64_t kAway = uint64_t{24} * 512;  // there, the disk begins here
    std::mt19937_64 random(3);
    for (int step = 0; step < 300; ++step) {
      const uint64_t offset = random() % 30000;
      Bytes data(random() % 3000);
      for (auto& b : data) b = static_cast<std::byte>(random());
      if (step % 3 == 0) {
        ASSERT_TRUE(moved.device->write_zeroes(offset, data.size(), ZeroMode::kMayUnmap));
        ASSERT_TRUE(there.device->write_zeroes_numbered(kAway + offset, offset, data.size()));
      } else {
        ASSERT_TRUE(moved.device->write_at(offset, data));
        ASSERT_TRUE(there.device->write_numbered(kAway + offset, offset, data));
      }
      const uint64_t from = random() % 30000;
      Bytes one(random() % 3000);
      Bytes other(one.size());
      ASSERT_TRUE(moved.device->read_at(from, one));
      ASSERT_TRUE(there.device->read_numbered(kAway + from, from, other));
      ASSERT_EQ(one, other) << "step " << step;
    }
    // Before the disk nothing has changed.
    Bytes raw(kAway);
    ASSERT_TRUE(there.inner->read_at(0, raw));
    EXPECT_TRUE(std::ranges::all_of(raw, [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(EncryptedDevice, NothingIsKnownToBeZero) {
  const Disk disk = make_disk(4096);
  EXPECT_EQ(*disk.device->extents(0, 10000), (std::vector<Extent>{{0, 4096, ExtentKind::kData}}));
  EXPECT_FALSE(disk.device->capabilities().has_extents);
}

}  // namespace
}  // namespace varve::crypto
