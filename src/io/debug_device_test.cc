#include "io/debug_device.h"

#include <gtest/gtest.h>

#include "io/memory_device.h"

namespace varve {
namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes(size_t count, int value) {
  return Bytes(count, std::byte(value));
}

class DebugDeviceTest : public testing::Test {
 protected:
  DebugDevice device(std::vector<ErrorRule> errors, DebugLimits limits = {}, std::vector<StateRule> states = {}) {
    return {memory_, {.errors = std::move(errors), .states = std::move(states), .limits = limits}};
  }
  Bytes contents(uint64_t offset, size_t count) {
    Bytes buffer(count);
    EXPECT_TRUE(memory_->read_at(offset, buffer));
    return buffer;
  }
  static int error_of(const Result<void>& result) { return result ? 0 : result.error().sys_errno; }
  static int read(BlockDevice& device, uint64_t offset, size_t count) {
    Bytes buffer(count);
    return error_of(device.read_at(offset, buffer));
  }
  static int write(BlockDevice& device, uint64_t offset, size_t count) {
    return error_of(device.write_at(offset, bytes(count, 7)));
  }

  std::shared_ptr<MemoryDevice> memory_ = std::make_shared<MemoryDevice>("vda", 65536);
};

TEST_F(DebugDeviceTest, WithoutRulesItIsTheDeviceBelow) {
  DebugDevice debug = device({});
  EXPECT_EQ(write(debug, 1000, 3000), 0);
  EXPECT_EQ(error_of(debug.write_zeroes(1100, 100, ZeroMode::kMayUnmap)), 0);
  EXPECT_EQ(error_of(debug.flush()), 0);
  EXPECT_EQ(contents(1000, 100), bytes(100, 7));
  EXPECT_EQ(contents(1100, 100), bytes(100, 0));
  EXPECT_EQ(error_of(debug.resize(70000)), 0);
  EXPECT_EQ(*debug.size(), 70000u);
  EXPECT_EQ(*debug.extents(0, 70000), *memory_->extents(0, 70000));
  EXPECT_EQ(debug.name(), "vda");
}

TEST_F(DebugDeviceTest, FailsRequestsThatContainTheByte) {
  DebugDevice debug = device({{.error = ENXIO, .offset = 1024}});
  EXPECT_EQ(read(debug, 0, 1024), 0);
  EXPECT_EQ(read(debug, 0, 1025), ENXIO);
  EXPECT_EQ(read(debug, 1024, 1), ENXIO);
  EXPECT_EQ(read(debug, 1025, 1000), 0);
  EXPECT_EQ(write(debug, 1000, 100), ENXIO);
  EXPECT_EQ(contents(1000, 100), bytes(100, 0));
  EXPECT_EQ(error_of(debug.write_zeroes(0, 4096, ZeroMode::kMayUnmap)), ENXIO);
  EXPECT_EQ(error_of(debug.discard(0, 4096)), ENXIO);
  EXPECT_TRUE(debug.extents(0, 4096));  // nobody asked for that
  EXPECT_EQ(error_of(debug.flush()), 0);
}

TEST_F(DebugDeviceTest, FailsTheKindsOfRequestsThatTheRuleNames) {
  DebugDevice debug = device({{.kinds = kRequestBlockStatus}, {.kinds = kRequestFlush, .error = ENOSPC}});
  EXPECT_EQ(read(debug, 0, 512), 0);
  EXPECT_EQ(write(debug, 0, 512), 0);
  EXPECT_FALSE(debug.extents(0, 512));
  EXPECT_EQ(error_of(debug.flush()), ENOSPC);
  EXPECT_EQ(debug.write_at(0, bytes(1, 1)).error().kind, ErrorKind::kIo);  // nobody knows what is on the disk
}

TEST_F(DebugDeviceTest, ARuleThatHoldsOnceFailsOnce) {
  DebugDevice debug = device({{.kinds = kRequestRead, .once = true}});
  EXPECT_EQ(read(debug, 0, 512), EIO);
  EXPECT_EQ(read(debug, 0, 512), 0);
}

TEST_F(DebugDeviceTest, TheFirstRuleThatFitsDecides) {
  DebugDevice debug = device({{.error = 0, .offset = 0}, {.error = ENXIO}, {.error = EIO}});
  EXPECT_EQ(read(debug, 0, 512), 0);
  EXPECT_EQ(read(debug, 512, 512), ENXIO);
}

TEST_F(DebugDeviceTest, GuestDataSetsOffItsEvents) {
  auto debug = std::make_shared<DebugDevice>(
      memory_, DebugOptions{.errors = {{.event = DebugEvent::kWriteAio, .error = ENOSPC}}, .states = {}, .limits = {}});
  DebugGuestData guest(debug);
  EXPECT_EQ(read(guest, 0, 512), 0);
  EXPECT_EQ(write(*debug, 0, 512), 0);  // metadata
  EXPECT_EQ(write(guest, 0, 512), ENOSPC);
  EXPECT_EQ(read(*debug, 0, 512), ENOSPC);  // and from then on everything
}

TEST_F(DebugDeviceTest, AnEventReplacesTheRulesOfTheLast) {
  auto debug = std::make_shared<DebugDevice>(
      memory_, DebugOptions{.errors = {{.event = DebugEvent::kNone, .kinds = kRequestBlockStatus},
                                       {.event = DebugEvent::kReadAio, .kinds = kRequestRead, .error = ENXIO}},
                            .states = {},
                            .limits = {}});
  DebugGuestData guest(debug);
  EXPECT_FALSE(debug->extents(0, 512));
  EXPECT_EQ(read(guest, 0, 512), ENXIO);
  EXPECT_TRUE(debug->extents(0, 512));
}

TEST_F(DebugDeviceTest, StatesDecideWhichRulesAnEventBrings) {
  auto debug = std::make_shared<DebugDevice>(
      memory_, DebugOptions{.errors = {{.event = DebugEvent::kReadAio, .state = 3}},
                            .states = {{.event = DebugEvent::kReadAio, .state = 1, .new_state = 2},
                                       {.event = DebugEvent::kReadAio, .state = 2, .new_state = 3}},
                            .limits = {}});
  DebugGuestData guest(debug);
  EXPECT_EQ(read(guest, 0, 512), 0);
  EXPECT_EQ(read(guest, 0, 512), 0);
  EXPECT_EQ(read(guest, 0, 512), EIO);
}

TEST_F(DebugDeviceTest, AlignmentWidensWhatRulesSee) {
  DebugDevice debug = device({{.kinds = kRequestWrite, .offset = 4096}}, {.alignment = 4096});
  EXPECT_EQ(write(debug, 4000, 96), 0);
  EXPECT_EQ(write(debug, 8000, 100), EIO);
  EXPECT_EQ(contents(4000, 96), bytes(96, 7));
}

TEST_F(DebugDeviceTest, EdgesOfMisalignedWritesAreRead) {
  DebugDevice debug = device({{.event = DebugEvent::kPwritevRmwTail, .kinds = kRequestRead}}, {.alignment = 4096});
  EXPECT_EQ(write(debug, 4096, 4096), 0);
  EXPECT_EQ(write(debug, 100, 3996), 0);  // only at its head
  EXPECT_EQ(write(debug, 4096, 100), EIO);
}

TEST_F(DebugDeviceTest, LongWritesAreCut) {
  DebugDevice debug = device({{.kinds = kRequestWrite, .offset = 9000}}, {.max_transfer = 4096});
  EXPECT_EQ(write(debug, 0, 16384), EIO);
  EXPECT_EQ(contents(0, 8192), bytes(8192, 7));  // before the part that failed
  EXPECT_EQ(contents(8192, 4096), bytes(4096, 0));
}

TEST_F(DebugDeviceTest, EdgesOfZeroesAreWrittenAsData) {
  const ErrorRule rule{.kinds = kRequestWrite};
  DebugDevice debug = device({rule}, {.write_zeroes_alignment = 4096});
  EXPECT_EQ(error_of(debug.write_zeroes(4096, 8192, ZeroMode::kMayUnmap)), 0);
  EXPECT_EQ(error_of(debug.write_zeroes(4096, 8193, ZeroMode::kMayUnmap)), EIO);
  EXPECT_EQ(error_of(debug.write_zeroes(4095, 8193, ZeroMode::kMayUnmap)), EIO);
}

TEST_F(DebugDeviceTest, ZeroesAndDiscardsReachAllOfTheirRange) {
  const DebugLimits limits{.alignment = 512,
                           .max_transfer = 1024,
                           .write_zeroes_alignment = 1536,
                           .max_write_zeroes = 3072,
                           .discard_alignment = 1536,
                           .max_discard = 1536};
  for (const uint64_t offset : {0u, 1u, 511u, 512u, 1535u, 1536u}) {
    for (const uint64_t length : {1u, 511u, 512u, 1535u, 3072u, 20001u}) {
      DebugDevice debug = device({}, limits);
      for (const bool zeroes : {true, false}) {
        ASSERT_TRUE(memory_->write_at(0, bytes(65536, 1)));
        EXPECT_EQ(
            error_of(zeroes ? debug.write_zeroes(offset, length, ZeroMode::kMayUnmap) : debug.discard(offset, length)),
            0);
        EXPECT_EQ(contents(0, offset), bytes(offset, 1));
        EXPECT_EQ(contents(offset, length), bytes(length, 0)) << offset << " " << length;
        EXPECT_EQ(contents(offset + length, 5000), bytes(5000, 1));
      }
    }
  }
}

TEST_F(DebugDeviceTest, WhatCanNotExistIsTheDeviceBelowsToRefuse) {
  DebugDevice debug = device({}, {.alignment = 4096});
  Bytes buffer(512);
  EXPECT_EQ(debug.read_at(UINT64_MAX - 100, buffer).error().kind, ErrorKind::kInvalidArgument);
  EXPECT_FALSE(debug.write_at(UINT64_MAX - 100, buffer));
}

}  // namespace
}  // namespace varve
