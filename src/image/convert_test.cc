#include "image/convert.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "io/debug_device.h"
#include "io/fault_device.h"
#include "io/memory_device.h"
#include "qcow2/image.h"

namespace varve::image {
namespace {

constexpr uint64_t kMiB = 1 << 20;

void fill(BlockDevice& device, uint64_t offset, uint64_t length, unsigned char value) {
  const std::vector<std::byte> data(length, std::byte{value});
  ASSERT_TRUE(device.write_at(offset, data));
}

std::vector<std::byte> contents(BlockDevice& device) {
  std::vector<std::byte> bytes(*device.size());
  EXPECT_TRUE(device.read_at(0, bytes));
  return bytes;
}

uint64_t data_in(BlockDevice& device) {
  uint64_t sum = 0;
  const Result<std::vector<Extent>> extents = device.extents(0, *device.size());
  for (const Extent& extent : *extents) sum += extent.kind == ExtentKind::kData ? extent.length : 0;
  return sum;
}

TEST(Convert, CopiesDataAndLeavesHoles) {
  MemoryDevice source("source", 20 * kMiB);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    fill(source, random() % (19 * kMiB), 1 + random() % 20000, static_cast<unsigned char>(random() % 3));
  }
  for (const bool target_is_zero : {true, false}) {
    MemoryDevice target("target", 20 * kMiB);
    if (!target_is_zero) fill(target, 0, 20 * kMiB, 9);
    const Result<void> done = convert({{{&source}, 20 * kMiB}}, target,
                                      {.sparse_size = 4096, .target_zero_from = target_is_zero ? 0 : UINT64_MAX});
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(contents(source), contents(target));
    EXPECT_LE(data_in(target), data_in(source));
  }
}

TEST(Convert, MakesHolesOfRunsOfZeroesThatAreLongEnough) {
  MemoryDevice source("source", 4 * kMiB);
  fill(source, 0, 4 * kMiB, 0);
  fill(source, kMiB, 4096, 1);
  fill(source, kMiB + 16384, 4096, 1);
  for (const auto& [sparse_size, expected] :
       {std::pair<uint64_t, uint64_t>{4096, 8192}, std::pair<uint64_t, uint64_t>{16384, 32768},
        std::pair<uint64_t, uint64_t>{0, 4 * kMiB}}) {
    MemoryDevice target("target", 4 * kMiB);
    ASSERT_TRUE(convert({{{&source}, 4 * kMiB}}, target, {.sparse_size = sparse_size, .target_zero_from = 0}));
    EXPECT_EQ(contents(source), contents(target));
    EXPECT_EQ(data_in(target), expected) << sparse_size;
  }
}

TEST(Convert, PutsSourcesOneBehindTheOther) {
  MemoryDevice first("first", 3 * kMiB / 2);
  MemoryDevice second("second", kMiB);
  fill(first, kMiB, 4096, 1);
  fill(second, 0, 4096, 2);
  MemoryDevice target("target", 3 * kMiB);
  ASSERT_TRUE(convert({{{&first}, 3 * kMiB / 2}, {{&second}, kMiB}}, target, {.target_zero_from = 0}));
  const std::vector<std::byte> bytes = contents(target);
  EXPECT_EQ(bytes[kMiB], std::byte{1});
  EXPECT_EQ(bytes[3 * kMiB / 2], std::byte{2});
  EXPECT_EQ(bytes[3 * kMiB / 2 + 4096], std::byte{0});
}

TEST(Convert, SaysWhereReadingOrWritingFailed) {
  for (const bool reading : {true, false}) {
    auto memory = std::make_unique<MemoryDevice>("device", 64 * kMiB);
    fill(*memory, 0, 64 * kMiB, 1);
    FaultDevice failing(std::move(memory));
    // Pieces are of 2 MiB each.
    failing.control().inject({.at = 16, .kinds = reading ? kOpRead : kOpWrite, .error = reading ? EIO : ENOSPC});
    MemoryDevice other("other", 64 * kMiB);
    fill(other, 0, 64 * kMiB, 2);
    BlockDevice& source = reading ? static_cast<BlockDevice&>(failing) : other;
    BlockDevice& target = reading ? static_cast<BlockDevice&>(other) : failing;
    const Result<void> done = convert({{{&source}, 64 * kMiB}}, target, {});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().sys_errno, reading ? EIO : ENOSPC);
    // Several threads: which of the pieces under way had the seventeenth call is not said.
    ASSERT_TRUE(done.error().offset);
    EXPECT_EQ(*done.error().offset % (2 * kMiB), 0u);
    EXPECT_LE(*done.error().offset, 34 * kMiB);
    EXPECT_TRUE(done.error().message.starts_with(
        fmt::format("error while {} at byte {}: ", reading ? "reading" : "writing", *done.error().offset)))
        << done.error().message;
  }
}

TEST(Convert, AnInterruptedCopyHoldsEverythingBeforeTheOffsetItNames) {
  MemoryDevice source("source", 64 * kMiB);
  fill(source, 0, 64 * kMiB, 1);
  MemoryDevice target("target", 64 * kMiB);
  std::atomic<int> asked = 0;
  const Result<void> done =
      convert({{{&source}, 64 * kMiB}}, target, {.target_zero_from = 0, .interrupted = [&] { return ++asked > 12; }});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().kind, ErrorKind::kInterrupted);
  ASSERT_TRUE(done.error().offset);
  EXPECT_GE(*done.error().offset, 8 * kMiB);
  const std::vector<std::byte> copied = contents(target);
  EXPECT_EQ(std::count(copied.begin(), copied.begin() + static_cast<ptrdiff_t>(*done.error().offset), std::byte{1}),
            static_cast<ptrdiff_t>(*done.error().offset));
}

TEST(Convert, SalvageTellsOfWhatCantBeRead) {
  auto memory = std::make_unique<MemoryDevice>("device", kMiB);
  fill(*memory, 0, kMiB, 1);
  FaultDevice failing(std::move(memory));
  failing.control().inject({.at = 0, .kinds = kOpRead, .error = EIO, .once = true});
  MemoryDevice target("target", kMiB);
  size_t told = 0;
  const Salvage salvage{.unreadable = [&](uint64_t, const Error&) { ++told; },
                        .unknown = [](uint64_t, const Error&) {}};
  ASSERT_TRUE(convert({{{&failing}, kMiB}}, target, {.salvage = salvage}));
  EXPECT_EQ(told, 0u);  // sector by sector everything was there
  EXPECT_EQ(contents(target), std::vector<std::byte>(kMiB, std::byte{1}));
  failing.control().clear_fault();
  failing.control().inject({.at = 0, .kinds = kOpRead, .error = EIO});
  ASSERT_TRUE(convert({{{&failing}, kMiB}}, target, {.salvage = salvage}));
  EXPECT_EQ(told, kMiB / 512);
  EXPECT_EQ(contents(target), std::vector<std::byte>(kMiB));
}

// The second of eight sectors can't be mapped, the fifth can't be read.
TEST(Convert, SalvageReadsWhatCantBeMapped) {
  auto memory = std::make_shared<MemoryDevice>("device", 4096);
  fill(*memory, 0, 4096, 1);
  DebugOptions rules;
  rules.errors = {{.kinds = kRequestBlockStatus, .error = EIO, .offset = 512},
                  {.kinds = kRequestRead, .error = EIO, .offset = 2048}};
  DebugDevice failing(memory, rules);
  MemoryDevice target("target", 4096);
  std::vector<std::string> told;
  const auto tell = [&](const char* what) {
    return [&told, what](uint64_t offset, const Error&) { told.push_back(fmt::format("{} {}", what, offset)); };
  };
  ASSERT_TRUE(convert({{{&failing}, 4096}}, target,
                      {.salvage = Salvage{.unreadable = tell("unreadable"), .unknown = tell("unknown")}}));
  EXPECT_EQ(told, (std::vector<std::string>{"unknown 512", "unknown 512", "unreadable 2048"}));
  std::vector<std::byte> expected(4096, std::byte{1});
  std::fill_n(expected.begin() + 2048, 512, std::byte{0});
  EXPECT_EQ(contents(target), expected);
  const Result<void> strict = convert({{{&failing}, 4096}}, target, {});
  ASSERT_FALSE(strict);
  EXPECT_TRUE(strict.error().message.starts_with("error while reading block status at offset 0: "))
      << strict.error().message;
}

// Looked at by whole clusters, as they are compressed: also there nobody may be able to say what is data, although a
// moment ago somebody was.
class ForgetfulDevice final : public BlockDevice {
 public:
  explicit ForgetfulDevice(std::shared_ptr<BlockDevice> below, std::vector<size_t> failing_calls)
      : below_(std::move(below)), failing_calls_(std::move(failing_calls)) {}
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    if (std::ranges::count(failing_calls_, calls_++) != 0) return make_error(ErrorKind::kIo, "nobody can tell");
    return below_->extents(offset, length);
  }
  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    return below_->read_at(offset, buffer);
  }
  Result<void> write_at(uint64_t, std::span<const std::byte>) override { return {}; }
  Result<void> write_zeroes(uint64_t, uint64_t, ZeroMode) override { return {}; }
  Result<void> discard(uint64_t, uint64_t) override { return {}; }
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override { return below_->size(); }
  Result<void> resize(uint64_t) override { return {}; }
  DeviceCapabilities capabilities() const override { return below_->capabilities(); }
  const std::string& name() const override { return below_->name(); }
  size_t calls() const { return calls_; }

 private:
  std::shared_ptr<BlockDevice> below_;
  std::vector<size_t> failing_calls_;
  size_t calls_ = 0;
};

TEST(Convert, SalvageCompressesWhatCantBeMapped) {
  auto memory = std::make_shared<MemoryDevice>("device", 2 * kMiB);
  fill(*memory, 0, 2 * kMiB, 1);
  size_t calls = 0;
  // The first look fails, so a quarter is looked at, which is cut to whole clusters and looked at again; that fails
  // too.
  for (const std::vector<size_t>& failing : {std::vector<size_t>{0}, {0, 2}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 2, 3, 4}}) {
    SCOPED_TRACE(testing::PrintToString(failing));
    ForgetfulDevice source(memory, failing);
    const auto file = std::make_shared<MemoryDevice>();
    ASSERT_TRUE(qcow2::Image::create(*file, {.size = 2 * kMiB}));
    const auto target = *qcow2::Image::open(file, {.writable = true});
    size_t unknown = 0;
    const Salvage salvage{.unreadable = [](uint64_t, const Error&) { ADD_FAILURE(); },
                          .unknown = [&](uint64_t, const Error&) { ++unknown; }};
    const auto done = convert({{{&source}, 2 * kMiB}}, *target, {.compress_into = target.get(), .salvage = salvage});
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(contents(*target), std::vector<std::byte>(2 * kMiB, std::byte{1}));
    EXPECT_EQ(unknown != 0, failing.size() > 1);
    calls = std::max(calls, source.calls());
  }
  EXPECT_GT(calls, 8u);
}

TEST(Convert, ReportsProgressUpToTheEnd) {
  MemoryDevice source("source", 16 * kMiB);
  fill(source, 0, 8 * kMiB, 1);
  MemoryDevice target("target", 16 * kMiB);
  std::vector<std::pair<uint64_t, uint64_t>> reports;
  ASSERT_TRUE(convert(
      {{{&source}, 16 * kMiB}}, target,
      {.target_zero_from = 0, .progress = [&](uint64_t done, uint64_t total) { reports.emplace_back(done, total); }}));
  ASSERT_GE(reports.size(), 3u);
  EXPECT_EQ(reports.front(), std::pair(uint64_t{0}, 8 * kMiB));
  EXPECT_EQ(reports.back(), std::pair(8 * kMiB, 8 * kMiB));
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
}

}  // namespace
}  // namespace varve::image
