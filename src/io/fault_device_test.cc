#include "io/fault_device.h"

#include <gtest/gtest.h>

#include <thread>

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

class FaultDeviceTest : public testing::Test {
 protected:
  std::shared_ptr<FaultControl> control_ = std::make_shared<FaultControl>();
  FaultDevice device_{std::make_unique<MemoryDevice>("vda", 8192), control_};
};

TEST_F(FaultDeviceTest, WithoutAFaultItIsADisk) {
  ASSERT_TRUE(device_.write_at(8000, bytes(1000, 7)));
  ASSERT_TRUE(device_.write_zeroes(8100, 100, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(device_.discard(0, 4096));
  ASSERT_TRUE(device_.resize(20000));
  ASSERT_TRUE(device_.flush());
  EXPECT_EQ(*device_.size(), 20000u);
  EXPECT_EQ(read(device_, 8000, 100), bytes(100, 7));
  EXPECT_EQ(read(device_, 8100, 100), bytes(100, 0));
  EXPECT_EQ(device_.extents(0, 20000)->size(), 3u);
  EXPECT_EQ(device_.name(), "vda");
}

TEST_F(FaultDeviceTest, CallsAreCountedByKind) {
  ASSERT_TRUE(device_.write_at(0, bytes(1, 7)));
  ASSERT_TRUE(device_.write_at(0, bytes(1, 7)));
  ASSERT_TRUE(device_.flush());
  read(device_, 0, 1);
  EXPECT_EQ(control_->calls(kOpWrite), 2u);
  EXPECT_EQ(control_->calls(kOpFlush), 1u);
  EXPECT_EQ(control_->calls(kOpMutations), 3u);
  EXPECT_EQ(control_->calls(kOpAny), 4u);
  EXPECT_EQ(control_->recorded_operations(), 3u);
}

TEST_F(FaultDeviceTest, FailsFromTheNthCallOfItsKindOn) {
  control_->inject({.at = 1, .kinds = kOpWrite, .error = ENOSPC});
  ASSERT_TRUE(device_.write_at(0, bytes(10, 1)));
  ASSERT_TRUE(device_.flush());
  const auto r = device_.write_at(100, bytes(10, 2));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kNoSpace);
  EXPECT_EQ(r.error().offset, 100u);
  EXPECT_EQ(r.error().message, "cannot write 10 bytes at offset 100 of 'vda': No space left on device");
  EXPECT_FALSE(device_.write_at(0, bytes(10, 3)));
  EXPECT_TRUE(device_.discard(4096, 4096));
  EXPECT_EQ(read(device_, 0, 10), bytes(10, 1));
  EXPECT_EQ(read(device_, 100, 10), bytes(10, 0));
  control_->clear_fault();
  EXPECT_TRUE(device_.write_at(0, bytes(10, 3)));
}

TEST_F(FaultDeviceTest, FailsOnce) {
  control_->inject({.at = 0, .kinds = kOpRead, .once = true});
  std::vector<std::byte> buffer(1);
  EXPECT_EQ(device_.read_at(0, buffer).error().kind, ErrorKind::kIo);
  EXPECT_TRUE(device_.read_at(0, buffer));
}

TEST_F(FaultDeviceTest, AHalfDoneWriteEndsAtASector) {
  control_->inject({.at = 0, .kinds = kOpWrite, .error = ENOSPC, .once = true, .half_done = true});
  ASSERT_FALSE(device_.write_at(100, bytes(2000, 5)));  // sectors 0 to 4; the first two
  EXPECT_EQ(read(device_, 100, 924), bytes(924, 5));
  EXPECT_EQ(read(device_, 1024, 2000), bytes(2000, 0));
  ASSERT_EQ(control_->records()[0]->log.size(), 1u);
  EXPECT_EQ(control_->records()[0]->log[0].length, 924u);
}

TEST_F(FaultDeviceTest, AFailedFlushIsTheEndOfWriting) {
  control_->inject({.at = 0, .kinds = kOpFlush, .once = true});
  ASSERT_TRUE(device_.write_at(0, bytes(10, 1)));
  ASSERT_FALSE(device_.flush());
  EXPECT_EQ(device_.write_at(0, bytes(10, 2)).error().kind, ErrorKind::kIo);
  EXPECT_EQ(device_.flush().error().kind, ErrorKind::kIo);
  EXPECT_EQ(read(device_, 0, 10), bytes(10, 1));
}

TEST_F(FaultDeviceTest, APowerCutEndsEverythingOnAllDisks) {
  FaultDevice other(std::make_unique<MemoryDevice>("vdb", 8192), control_);
  control_->cut_power_at(2);
  ASSERT_TRUE(device_.write_at(0, bytes(10, 1)));
  ASSERT_TRUE(other.flush());
  EXPECT_FALSE(other.write_at(0, bytes(10, 1)));
  std::vector<std::byte> buffer(1);
  EXPECT_FALSE(device_.read_at(0, buffer));
  EXPECT_FALSE(device_.size());
  EXPECT_FALSE(device_.extents(0, 10));
  EXPECT_FALSE(device_.flush());
  EXPECT_EQ(control_->recorded_operations(), 2u);
  EXPECT_EQ(read(other.disk(), 0, 10), bytes(10, 0));
}

TEST_F(FaultDeviceTest, TheRunIsRecordedFromWhereItStartsOver) {
  ASSERT_TRUE(device_.write_at(0, bytes(10, 1)));
  control_->mark();
  control_->start_over();
  EXPECT_EQ(control_->recorded_operations(), 0u);
  EXPECT_TRUE(control_->marks().empty());
  FaultDevice other(std::make_unique<MemoryDevice>("vdb", 8192), control_);
  ASSERT_TRUE(device_.write_at(5, bytes(10, 2)));
  ASSERT_TRUE(other.discard(7, 8));
  control_->mark();
  ASSERT_TRUE(device_.resize(4096));
  const auto& records = control_->records();
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(read(*records[0]->initial, 0, 10), bytes(10, 1));
  ASSERT_EQ(records[0]->log.size(), 2u);
  EXPECT_EQ(records[0]->log[0].data, bytes(10, 2));
  EXPECT_EQ(records[0]->log[1].kind, kOpResize);
  EXPECT_EQ(records[0]->sequences, (std::vector<uint64_t>{0, 2}));
  EXPECT_EQ(records[1]->sequences, (std::vector<uint64_t>{1}));
  EXPECT_EQ(control_->marks(), (std::vector<uint64_t>{2}));
}

TEST_F(FaultDeviceTest, ThreadsAreSerialised) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 100; ++i) EXPECT_TRUE(device_.write_at(static_cast<uint64_t>(t) * 512, bytes(512, t)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(control_->recorded_operations(), 400u);
}

}  // namespace
}  // namespace varve
