#include "image/offload.h"

#include <gtest/gtest.h>

#include "support/temp_dir.h"

namespace varve::image {
namespace {

class Offload : public testing::Test {
 protected:
  void SetUp() override {
    source_ = *FileDevice::create(dir_ / "source", LockRequest::none());
    target_ = *FileDevice::create(dir_ / "target", LockRequest::none());
    ASSERT_TRUE(source_->resize(kSize));
    ASSERT_TRUE(target_->resize(kSize));
    const std::vector<std::byte> data(100000, std::byte{7});
    ASSERT_TRUE(source_->write_at(5000, data));
    ASSERT_TRUE(source_->write_at(kSize - 700, std::span(data).first(700)));
  }
  static std::vector<std::byte> contents(FileDevice& file) {
    std::vector<std::byte> bytes(*file.size());
    EXPECT_TRUE(file.read_at(0, bytes));
    return bytes;
  }

  static constexpr uint64_t kSize = 3000320;  // not a multiple of any block
  test::TempDir dir_;
  std::unique_ptr<FileDevice> source_;
  std::unique_ptr<FileDevice> target_;
};

TEST_F(Offload, SharesBlocksOrChangesNothing) {
  const auto shared = share_blocks(*source_, *target_, kSize);
  ASSERT_TRUE(shared) << shared.error().message;
  EXPECT_EQ(contents(*target_), *shared ? contents(*source_) : std::vector<std::byte>(kSize));
}

TEST_F(Offload, DoesNotShareFilesOfAnotherSize) {
  ASSERT_TRUE(target_->resize(kSize + 512));
  const auto shared = share_blocks(*source_, *target_, kSize);
  ASSERT_TRUE(shared);
  EXPECT_FALSE(*shared);
}

TEST_F(Offload, CopiesDataAndLeavesHoles) {
  const auto copied = copy_in_kernel(*source_, *target_, kSize);
  ASSERT_TRUE(copied) << copied.error().message;
  ASSERT_TRUE(*copied);
  EXPECT_EQ(contents(*target_), contents(*source_));
  EXPECT_LT(*target_->allocated_bytes(), 300000u);
}

}  // namespace
}  // namespace varve::image
