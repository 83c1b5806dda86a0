#include "io/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <thread>

#include "support/mounted_file_system.h"
#include "support/process.h"
#include "support/temp_dir.h"

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

class FileDeviceTest : public testing::Test {
 protected:
  std::unique_ptr<FileDevice> create(const std::string& name = "disk.img") {
    auto r = FileDevice::create(dir_ / name, LockRequest::format_writer());
    EXPECT_TRUE(r) << r.error().message;
    return r ? std::move(*r) : nullptr;
  }
  test::TempDir dir_;
};

TEST_F(FileDeviceTest, WhatIsWrittenIsReadByTheNextOpener) {
  {
    auto device = create();
    ASSERT_TRUE(device->write_at(5000, bytes(3000, 7)));
    ASSERT_TRUE(device->flush());
    ASSERT_TRUE(device->sync_all());
  }
  auto device = FileDevice::open(dir_ / "disk.img", Access::kReadOnly, LockRequest::format_reader());
  ASSERT_TRUE(device);
  EXPECT_EQ(*(*device)->size(), 8000u);
  EXPECT_EQ(read(**device, 0, 5000), bytes(5000, 0));
  EXPECT_EQ(read(**device, 5000, 3000), bytes(3000, 7));
  EXPECT_FALSE((*device)->capabilities().can_write);
}

TEST_F(FileDeviceTest, CreateTruncatesAndUsesTheMode) {
  dir_.write("disk.img", "old contents");
  EXPECT_EQ(*create()->size(), 0u);
  ASSERT_TRUE(FileDevice::create(dir_ / "secret", LockRequest::format_writer(), 0600));
  struct stat st = {};
  ASSERT_EQ(::stat((dir_ / "secret").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777u, 0600u);
}

TEST_F(FileDeviceTest, CreateDoesNotTruncateWhatSomebodyHolds) {
  const std::string path = dir_.write("disk.img", "old contents");
  const auto reader = FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader());
  ASSERT_TRUE(reader);
  const auto r = FileDevice::create(path, LockRequest::format_writer());
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInUse);
  EXPECT_EQ(test::read_whole_file(path), "old contents");
}

TEST_F(FileDeviceTest, ErrorsCarryPathOffsetAndReason) {
  auto device = create();
  ASSERT_TRUE(device->write_at(0, bytes(100, 1)));
  std::vector<std::byte> buffer(200);
  const auto r = device->read_at(50, buffer);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(r.error().path, dir_ / "disk.img");
  EXPECT_EQ(r.error().offset, 50u);
  EXPECT_EQ(r.error().message,
            "cannot read 200 bytes at offset 50 of '" + dir_ / "disk.img" + "': the file ends at 100");
}

TEST_F(FileDeviceTest, OnlyFilesAndBlockDevicesAreOpened) {
  const auto directory = FileDevice::open(dir_.path(), Access::kReadOnly, LockRequest::none());
  ASSERT_FALSE(directory);
  EXPECT_EQ(directory.error().kind, ErrorKind::kInvalidArgument);
  ASSERT_EQ(::mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  const auto pipe = FileDevice::open(dir_ / "pipe", Access::kReadOnly, LockRequest::none());
  ASSERT_FALSE(pipe);
  EXPECT_EQ(pipe.error().message, "cannot open '" + dir_ / "pipe" + "': it is neither a file nor a block device");
  const auto missing = FileDevice::open(dir_ / "nothing", Access::kReadOnly, LockRequest::none());
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
}

TEST_F(FileDeviceTest, AReadOnlyDeviceRefusesChanges) {
  const std::string path = dir_.write("disk.img", "contents");
  auto device = FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader());
  ASSERT_TRUE(device);
  EXPECT_EQ((*device)->write_at(0, bytes(1, 1)).error().kind, ErrorKind::kPermission);
  EXPECT_EQ((*device)->write_zeroes(0, 1, ZeroMode::kMayUnmap).error().kind, ErrorKind::kPermission);
  EXPECT_EQ((*device)->discard(0, 1).error().kind, ErrorKind::kPermission);
  EXPECT_EQ((*device)->resize(0).error().kind, ErrorKind::kPermission);
  EXPECT_TRUE((*device)->flush());
  EXPECT_EQ(test::read_whole_file(path), "contents");
}

TEST_F(FileDeviceTest, ZeroesAndDiscardsNeverGrowAndReadAsZeroes) {
  auto device = create();
  ASSERT_TRUE(device->write_at(0, bytes(100001, 9)));
  ASSERT_TRUE(device->write_zeroes(5, 70000, ZeroMode::kMayUnmap));
  ASSERT_TRUE(device->write_zeroes(80000, 10, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(device->discard(100000, 1000000));
  ASSERT_TRUE(device->discard(200000, 10));
  EXPECT_EQ(*device->size(), 100001u);
  auto expected = bytes(100001, 9);
  std::fill(expected.begin() + 5, expected.begin() + 70005, std::byte{0});
  std::fill(expected.begin() + 80000, expected.begin() + 80010, std::byte{0});
  expected[100000] = std::byte{0};
  EXPECT_EQ(read(*device, 0, 100001), expected);
}

TEST_F(FileDeviceTest, DiscardGivesTheSpaceBackAndExtentsShowTheHole) {
  auto device = create();
  ASSERT_TRUE(device->write_at(0, bytes(1 << 20, 9)));
  ASSERT_TRUE(device->flush());
  const uint64_t before = *device->allocated_bytes();
  ASSERT_TRUE(device->discard(256 << 10, 512 << 10));
  if (!device->capabilities().can_discard) GTEST_SKIP() << "the file system of " << dir_.path() << " makes no holes";
  EXPECT_EQ(*device->allocated_bytes(), before - (512 << 10));
  const std::vector<Extent> expected = {{0, 256 << 10, ExtentKind::kData},
                                        {256 << 10, 512 << 10, ExtentKind::kZero},
                                        {768 << 10, 256 << 10, ExtentKind::kData}};
  EXPECT_EQ(*device->extents(0, UINT64_MAX), expected);
  const std::vector<Extent> middle = {{300 << 10, 100, ExtentKind::kZero}};
  EXPECT_EQ(*device->extents(300 << 10, 100), middle);
  EXPECT_TRUE(device->extents(1 << 20, 1)->empty());
}

TEST_F(FileDeviceTest, KeptZeroesStayAllocated) {
  auto device = create();
  ASSERT_TRUE(device->write_at(0, bytes(1 << 20, 9)));
  ASSERT_TRUE(device->write_zeroes(0, 1 << 20, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(device->flush());
  EXPECT_GE(*device->allocated_bytes(), 1u << 20);
  EXPECT_EQ(read(*device, 0, 1 << 20), bytes(1 << 20, 0));
}

// Much at once is written into holes, over data, over both, and behind the end: what was there stays.
TEST_F(FileDeviceTest, LargeWritesIntoHolesTouchNothingElse) {
  constexpr size_t kSize = 24 << 20;
  const auto device = create();
  std::vector<std::byte> expected;
  std::mt19937_64 random(4711);
  for (int i = 0; i < 40; ++i) {
    const size_t offset = random() % kSize;
    const size_t length = random() % (i % 2 == 0 ? 2 << 20 : 40000) + 1;
    const auto data = bytes(length, static_cast<int>(random() % 255) + 1);
    ASSERT_TRUE(device->write_at(offset, data));
    expected.resize(std::max(expected.size(), offset + length));
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<ptrdiff_t>(offset));
    ASSERT_EQ(*device->size(), expected.size());
  }
  EXPECT_TRUE(read(*device, 0, expected.size()) == expected);
  // A hole is still one, and so is what lies behind the end.
  const auto other = create("other.img");
  ASSERT_TRUE(other->resize(64 << 20));
  ASSERT_TRUE(other->write_at(16 << 20, bytes(1 << 20, 1)));
  EXPECT_EQ(*other->size(), uint64_t{64} << 20);
  EXPECT_LE(*other->allocated_bytes(), uint64_t{2} << 20);
  EXPECT_EQ(read(*other, 0, 16 << 20), bytes(16 << 20, 0));
}

TEST_F(FileDeviceTest, ResizeShrinksAndGrows) {
  auto device = create();
  ASSERT_TRUE(device->write_at(0, bytes(1000, 9)));
  ASSERT_TRUE(device->resize(10));
  ASSERT_TRUE(device->resize(1000));
  EXPECT_EQ(read(*device, 0, 10), bytes(10, 9));
  EXPECT_EQ(read(*device, 10, 990), bytes(990, 0));
  EXPECT_EQ(device->resize(UINT64_MAX).error().kind, ErrorKind::kNoSpace);
}

TEST_F(FileDeviceTest, ReadersBecomeWritersAndBack) {
  const std::string path = dir_.write("disk.img", "contents");
  auto ours = FileDevice::open(path, Access::kReadWrite, LockRequest::format_reader());
  ASSERT_TRUE(ours);
  {
    const auto theirs = FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader());
    ASSERT_TRUE(theirs);
    EXPECT_EQ((*ours)->relock(LockRequest::format_writer()).error().kind, ErrorKind::kInUse);
  }
  ASSERT_TRUE((*ours)->relock(LockRequest::format_writer()));
  EXPECT_FALSE(FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader()));
  ASSERT_TRUE((*ours)->relock(LockRequest::format_reader()));
  EXPECT_TRUE(FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader()));
}

// tmpfs punches holes but has no ZERO_RANGE; ramfs has neither.
TEST_F(FileDeviceTest, ZeroesAreWrittenWhereTheFileSystemCannotMakeThem) {
  REQUIRES_ROOT();
  for (const std::string type : {"tmpfs", "ramfs"}) {
    SCOPED_TRACE(type);
    const test::MountedFileSystem mount(type, "mode=0755");
    auto device = FileDevice::create(mount / "disk.img", LockRequest::format_writer());
    ASSERT_TRUE(device) << device.error().message;
    ASSERT_TRUE((*device)->write_at(0, bytes(1 << 20, 9)));
    ASSERT_TRUE((*device)->write_zeroes(1000, 600000, ZeroMode::kKeepAllocated));
    ASSERT_TRUE((*device)->discard(700000, 100000));
    auto expected = bytes(1 << 20, 9);
    std::fill(expected.begin() + 1000, expected.begin() + 601000, std::byte{0});
    std::fill(expected.begin() + 700000, expected.begin() + 800000, std::byte{0});
    EXPECT_EQ(read(**device, 0, 1 << 20), expected);
    EXPECT_EQ((*device)->capabilities().can_discard, type == "tmpfs");
  }
}

TEST_F(FileDeviceTest, AFullFileSystemIsNoSpaceAtTheOffset) {
  REQUIRES_ROOT();
  const test::MountedFileSystem mount("tmpfs", "size=256k");
  auto device = FileDevice::create(mount / "disk.img", LockRequest::format_writer());
  ASSERT_TRUE(device);
  const auto r = (*device)->write_at(4096, bytes(1 << 20, 9));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, ErrorKind::kNoSpace);
  EXPECT_EQ(r.error().offset, 4096u);
  EXPECT_EQ(r.error().message,
            "cannot write 1048576 bytes at offset 4096 of '" + mount / "disk.img" + "': No space left on device");
}

// A loop device is a block special file like any other. Detached with the test.
class LoopDevice {
 public:
  LoopDevice(const std::string& file, off_t size) {
    const UniqueFd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_EQ(::ftruncate(fd.get(), size), 0);
    const auto attached = test::run({"losetup", "--find", "--show", file});
    if (attached.exit_code == 0) path_ = attached.out.substr(0, attached.out.find('\n'));
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  ~LoopDevice() {
    if (!path_.empty()) test::run_ok({"losetup", "--detach", path_});
  }
  const std::string& path() const { return path_; }  // empty: this machine has none

 private:
  std::string path_;
};

TEST_F(FileDeviceTest, BlockSpecialFilesHaveTheirOwnSizeAndDoNotGrow) {
  REQUIRES_ROOT();
  const LoopDevice loop(dir_ / "loop.img", 1 << 20);
  if (loop.path().empty()) GTEST_SKIP() << "needs a loop device";
  auto opened = FileDevice::open(loop.path(), Access::kReadWrite, LockRequest::format_writer());
  ASSERT_TRUE(opened) << opened.error().message;
  FileDevice& device = **opened;
  EXPECT_TRUE(device.is_block_device());
  EXPECT_EQ(*device.size(), 1u << 20);
  EXPECT_FALSE(device.capabilities().can_grow);
  ASSERT_TRUE(device.write_at(0, bytes(1 << 20, 9)));
  ASSERT_TRUE(device.write_zeroes(700, 5000, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(device.discard(65536, 65536 + 100));
  ASSERT_TRUE(device.write_zeroes(1000, 3, ZeroMode::kMayUnmap));
  ASSERT_TRUE(device.flush());
  auto expected = bytes(1 << 20, 9);
  std::fill(expected.begin() + 700, expected.begin() + 5700, std::byte{0});
  std::fill(expected.begin() + 65536, expected.begin() + 131172, std::byte{0});
  EXPECT_EQ(read(device, 0, 1 << 20), expected);
  EXPECT_EQ(device.write_at((1 << 20) - 1, bytes(2, 1)).error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(device.resize(1 << 21).error().kind, ErrorKind::kUnsupported);
  EXPECT_TRUE(device.resize(1 << 20));
  const std::vector<Extent> all = {{0, 1 << 20, ExtentKind::kData}};
  EXPECT_EQ(*device.extents(0, UINT64_MAX), all);
}

// A disk over a file that has less room than it promises: a write goes to the page cache and comes back, and only the
// flush meets the full file system.
TEST_F(FileDeviceTest, AfterAFailedFlushNothingIsWrittenOrFlushedAgain) {
  REQUIRES_ROOT();
  const test::MountedFileSystem mount("tmpfs", "size=128k");
  const LoopDevice loop(mount / "loop.img", 1 << 20);
  if (loop.path().empty()) GTEST_SKIP() << "needs a loop device";
  auto opened = FileDevice::open(loop.path(), Access::kReadWrite, LockRequest::format_writer());
  ASSERT_TRUE(opened) << opened.error().message;
  FileDevice& device = **opened;
  ASSERT_TRUE(device.write_at(0, bytes(1 << 20, 9)));
  const auto failed = device.flush();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().path, loop.path());
  // The kernel would say yes to each of these.
  EXPECT_EQ(device.flush().error().kind, ErrorKind::kIo);
  EXPECT_EQ(device.sync_all().error().kind, ErrorKind::kIo);
  EXPECT_EQ(device.write_at(0, bytes(1, 1)).error().kind, ErrorKind::kIo);
  EXPECT_EQ(device.write_zeroes(0, 1, ZeroMode::kMayUnmap).error().kind, ErrorKind::kIo);
  EXPECT_EQ(device.discard(0, 1).error().kind, ErrorKind::kIo);
}

// Past the page cache and through it, by several threads, at any offset: it is one file.
TEST_F(FileDeviceTest, WhatBypassesThePageCacheIsTheSameFile) {
  constexpr size_t kPart = 300001;
  constexpr size_t kThreads = 4;
  const auto device = create();
  device->bypass_page_cache();
  std::vector<std::byte> expected(kThreads * kPart);
  const auto change = [&](size_t thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (int i = 0; i < 100; ++i) {
      const size_t from = random() % kPart;
      const size_t length = 1 + random() % (kPart - from);
      const std::span part = std::span(expected).subspan(thread * kPart + from, length);
      std::ranges::fill(part, std::byte(random()));
      EXPECT_TRUE(device->write_at(thread * kPart + from, part));
      std::vector<std::byte> back(length);
      EXPECT_TRUE(device->read_at(thread * kPart + from, back));
      EXPECT_TRUE(std::ranges::equal(back, part));
    }
  };
  ASSERT_TRUE(device->resize(expected.size()));
  {
    std::vector<std::jthread> threads;
    for (size_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(change, thread);
  }
  ASSERT_TRUE(device->flush());
  const auto cached = *FileDevice::open(dir_ / "disk.img", Access::kReadOnly, LockRequest::none());
  for (FileDevice* file : {device.get(), cached.get()}) {
    std::vector<std::byte> all(expected.size());
    ASSERT_TRUE(file->read_at(0, all));
    EXPECT_EQ(all, expected);
    EXPECT_FALSE(file->read_at(1, all));  // beyond the end
  }
}

}  // namespace
}  // namespace varve
