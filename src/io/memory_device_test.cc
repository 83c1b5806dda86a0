#include "io/memory_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace varve {
namespace {

std::vector<std::byte> bytes(size_t n, int value) {
  return std::vector<std::byte>(n, std::byte(value));
}

std::vector<std::byte> read(BlockDevice& device, uint64_t offset, size_t n) {
  std::vector<std::byte> buffer(n, std::byte{0xee});
  const auto r = device.read_at(offset, buffer);
  EXPECT_TRUE(r) << r.error().message;
  return buffer;
}

TEST(MemoryDevice, GrowsOnWriteAndReadsZeroesWhereNothingWasWritten) {
  MemoryDevice device;
  ASSERT_TRUE(device.write_at(10000, bytes(10, 7)));
  EXPECT_EQ(*device.size(), 10010u);
  EXPECT_EQ(read(device, 0, 10000), bytes(10000, 0));
  EXPECT_EQ(read(device, 10000, 10), bytes(10, 7));
}

TEST(MemoryDevice, ReadPastTheEndIsAnErrorWithNameAndOffset) {
  MemoryDevice device("disk", 100);
  std::vector<std::byte> buffer(10);
  const auto r = device.read_at(95, buffer);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(r.error().path, "disk");
  EXPECT_EQ(r.error().offset, 95u);
  EXPECT_EQ(r.error().message, "cannot read 10 bytes at offset 95 of 'disk': it ends at 100");
}

TEST(MemoryDevice, OffsetsThatOverflowAreRefused) {
  MemoryDevice device("disk", 100);
  std::vector<std::byte> buffer(10);
  EXPECT_FALSE(device.read_at(UINT64_MAX - 4, buffer));
  EXPECT_FALSE(device.write_at(UINT64_MAX - 4, buffer));
  EXPECT_EQ(*device.size(), 100u);
}

TEST(MemoryDevice, WriteZeroesAndDiscardNeverGrow) {
  MemoryDevice device("disk", 5000);
  ASSERT_TRUE(device.write_at(0, bytes(5000, 1)));
  ASSERT_TRUE(device.write_zeroes(4990, 100000, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(device.discard(4980, UINT64_MAX));
  ASSERT_TRUE(device.discard(6000, 10));
  EXPECT_EQ(*device.size(), 5000u);
  EXPECT_EQ(read(device, 0, 4980), bytes(4980, 1));
  EXPECT_EQ(read(device, 4980, 20), bytes(20, 0));
}

TEST(MemoryDevice, WhatShrinkingCutsOffIsZeroAfterGrowingAgain) {
  MemoryDevice device;
  ASSERT_TRUE(device.write_at(0, bytes(9000, 5)));
  ASSERT_TRUE(device.resize(100));
  ASSERT_TRUE(device.resize(9000));
  EXPECT_EQ(read(device, 0, 100), bytes(100, 5));
  EXPECT_EQ(read(device, 100, 8900), bytes(8900, 0));
}

TEST(MemoryDevice, ExtentsCoverTheClippedRangeAndMerge) {
  MemoryDevice device("disk", uint64_t{5} * 4096);
  ASSERT_TRUE(device.write_at(4096, bytes(8192, 1)));
  const std::vector<Extent> expected = {
      {100, 3996, ExtentKind::kZero}, {4096, 8192, ExtentKind::kData}, {12288, 8192, ExtentKind::kZero}};
  EXPECT_EQ(*device.extents(100, UINT64_MAX), expected);
  ASSERT_TRUE(device.discard(4096, 4096));
  ASSERT_TRUE(device.write_zeroes(0, 1, ZeroMode::kKeepAllocated));
  const std::vector<Extent> after = {
      {0, 4096, ExtentKind::kData}, {4096, 4096, ExtentKind::kZero}, {8192, 4096, ExtentKind::kData}};
  EXPECT_EQ(*device.extents(0, 12288), after);
  EXPECT_TRUE(device.extents(uint64_t{5} * 4096, 1)->empty());
}

TEST(MemoryDevice, ACloneIsIndependent) {
  MemoryDevice device;
  ASSERT_TRUE(device.write_at(0, bytes(10, 1)));
  auto copy = device.clone();
  ASSERT_TRUE(device.write_at(0, bytes(10, 2)));
  EXPECT_EQ(read(*copy, 0, 10), bytes(10, 1));
  EXPECT_EQ(*copy->size(), 10u);
}

TEST(MemoryDevice, ClonesOfClonesShareNothingThatCanBeSeen) {
  MemoryDevice first;
  ASSERT_TRUE(first.write_at(0, bytes(10000, 1)));
  const auto second = first.clone();
  const auto third = second->clone();
  ASSERT_TRUE(first.write_at(100, bytes(10, 2)));
  ASSERT_TRUE(second->write_zeroes(100, 10, ZeroMode::kMayUnmap));
  ASSERT_TRUE(third->resize(5000));
  ASSERT_TRUE(third->resize(10000));
  auto expected = bytes(10000, 1);
  std::fill_n(expected.begin() + 100, 10, std::byte{2});
  EXPECT_EQ(read(first, 0, 10000), expected);
  std::fill_n(expected.begin() + 100, 10, std::byte{0});
  EXPECT_EQ(read(*second, 0, 10000), expected);
  expected = bytes(10000, 1);
  std::fill(expected.begin() + 5000, expected.end(), std::byte{0});
  EXPECT_EQ(read(*third, 0, 10000), expected);
}

TEST(MemoryDevice, TheHashIsThatOfSizeAndContents) {
  MemoryDevice one;
  MemoryDevice other("of another name");
  EXPECT_EQ(one.hash(), other.hash());
  ASSERT_TRUE(one.write_at(9000, bytes(10, 1)));
  const uint64_t short_one = one.hash();
  EXPECT_NE(short_one, other.hash());
  ASSERT_TRUE(one.write_at(100, bytes(10, 2)));
  const auto clone = one.clone();
  EXPECT_EQ(one.hash(), clone->hash());
  // In another order, over something else, beside pages of zeroes.
  ASSERT_TRUE(other.write_zeroes(4096, 4096, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(other.write_at(0, bytes(9010, 3)));
  ASSERT_TRUE(other.write_zeroes(0, 9010, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(other.write_at(9000, bytes(10, 1)));
  EXPECT_EQ(other.hash(), short_one);
  ASSERT_TRUE(other.write_at(100, bytes(10, 2)));
  EXPECT_EQ(one.hash(), other.hash());
  ASSERT_TRUE(other.resize(9011));
  EXPECT_NE(one.hash(), other.hash());
  ASSERT_TRUE(other.resize(9010));
  ASSERT_TRUE(clone->write_at(100, bytes(1, 4)));
  EXPECT_EQ(one.hash(), other.hash());
  EXPECT_NE(one.hash(), clone->hash());
}

// Against a plain vector.
TEST(MemoryDevice, RandomOperationsMatchAModel) {
  const unsigned seed = 20260101;
  std::mt19937 random(seed);
  const auto pick = [&random](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random); };
  MemoryDevice device;
  std::vector<std::byte> model;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t offset = pick(40000);
    const uint64_t length = pick(9000);
    switch (pick(5)) {
      case 0:
      case 1: {
        const auto data = bytes(length, static_cast<int>(1 + pick(255)));
        ASSERT_TRUE(device.write_at(offset, data));
        if (length > 0 && model.size() < offset + length) model.resize(offset + length);
        std::copy(data.begin(), data.end(),
                  model.begin() + static_cast<ptrdiff_t>(std::min<uint64_t>(offset, model.size())));
        break;
      }
      case 2:
      case 3: {
        const auto mode = pick(2) == 0 ? ZeroMode::kMayUnmap : ZeroMode::kKeepAllocated;
        ASSERT_TRUE(pick(2) == 0 ? device.write_zeroes(offset, length, mode) : device.discard(offset, length));
        for (uint64_t i = offset; i < std::min<uint64_t>(offset + length, model.size()); ++i) model[i] = std::byte{0};
        break;
      }
      default:
        ASSERT_TRUE(device.resize(offset));
        model.resize(offset);
    }
    ASSERT_EQ(*device.size(), model.size()) << "seed " << seed << " step " << step;
    ASSERT_EQ(read(device, 0, model.size()), model) << "seed " << seed << " step " << step;
  }
}

}  // namespace
}  // namespace varve
