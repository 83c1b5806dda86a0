#include "transfer/file_copy.h"

#include <gtest/gtest.h>

#include <random>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

class FileCopyTest : public testing::Test {
 protected:
  static std::unique_ptr<FileDevice> make(const std::string& path) {
    auto file = FileDevice::create(path, LockRequest::none());
    EXPECT_TRUE(file);
    return std::move(*file);
  }
  static void write(FileDevice& file, uint64_t offset, size_t length, int byte) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(byte));
    ASSERT_TRUE(file.write_at(offset, data));
  }
  void expect_equal() const { test::run_ok({"cmp", directory_ / "source", directory_ / "target"}); }

  test::TempDir directory_;
  std::unique_ptr<FileDevice> source_ = make(directory_ / "source");
  std::unique_ptr<FileDevice> target_ = make(directory_ / "target");
};

TEST_F(FileCopyTest, HolesStayHoles) {
  write(*source_, 3 << 20, 5000, 7);
  ASSERT_TRUE(source_->resize(uint64_t{64} << 20));
  ASSERT_TRUE(copy_file(*source_, *target_, {}));
  expect_equal();
  EXPECT_LE(target_->allocated_bytes().value_or(UINT64_MAX), uint64_t{64} << 10);
}

TEST_F(FileCopyTest, WhatAnEarlierCopyLeftIsMadeRight) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 8; ++i) {
      const uint64_t at = random() % (8 << 20);
      const size_t length = 1 + random() % (1 << 20);
      if (random() % 3 == 0) {
        ASSERT_TRUE(source_->write_zeroes(at, length, ZeroMode::kMayUnmap));
      } else {
        write(*source_, at, length, static_cast<int>(random() % 255 + 1));
      }
      write(*target_, random() % (9 << 20), 1 + random() % 100000, 99);
    }
    ASSERT_TRUE(source_->resize((8 << 20) + random() % (2 << 20)));
    uint64_t seen = 0;
    ASSERT_TRUE(copy_file(*source_, *target_,
                          {.bytes = [&](std::span<const std::byte> bytes) { seen += bytes.size(); },
                           .zeroes = [&](uint64_t length) { seen += length; },
                           .progress = {}}));
    expect_equal();
    EXPECT_TRUE(seen == source_->size().value_or(0) || seen == 0);
  }
}

TEST_F(FileCopyTest, StopsWhereTheObserverWantsIt) {
  write(*source_, 0, 4 << 20, 1);
  const auto copied = copy_file(*source_, *target_,
                                {.bytes = {}, .zeroes = {}, .progress = [](uint64_t done) {
                                   return done < (1 << 20) ? Result<void>() : make_error(ErrorKind::kInterrupted, "x");
                                 }});
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind, ErrorKind::kInterrupted);
}

}  // namespace
}  // namespace varve
