#include "io/image_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

// Two open file descriptions of one file, as two programs would have them: OFD locks do not know processes.
class ImageLockTest : public testing::Test {
 protected:
  UniqueFd open() { return UniqueFd(::open(path_.c_str(), O_RDWR | O_CLOEXEC)); }
  // Whether a program that asks `fd` finds the byte locked by somebody else.
  static bool locked(const UniqueFd& fd, off_t byte) {
    struct flock fl = {};
    fl.l_type = F_WRLCK;
    fl.l_whence = SEEK_SET;
    fl.l_start = byte;
    fl.l_len = 1;
    EXPECT_EQ(::fcntl(fd.get(), F_OFD_GETLK, &fl), 0);
    return fl.l_type != F_UNLCK;
  }
  static std::vector<off_t> locked_bytes(const UniqueFd& fd) {
    std::vector<off_t> bytes;
    for (const off_t base : {100, 200}) {
      for (off_t p = 0; p < 8; ++p) {
        if (locked(fd, base + p)) bytes.push_back(base + p);
      }
    }
    return bytes;
  }

  test::TempDir dir_;
  std::string path_ = dir_.write("disk.img", "");
};

TEST_F(ImageLockTest, HoldsOneByteForEachPermission) {
  const UniqueFd ours = open();
  const UniqueFd theirs = open();
  {
    const auto lock = ImageLock::acquire(ours.get(), path_, LockRequest::format_writer());
    ASSERT_TRUE(lock);
    EXPECT_EQ(locked_bytes(theirs), (std::vector<off_t>{100, 101, 103, 201, 203}));
  }
  EXPECT_TRUE(locked_bytes(theirs).empty());
}

TEST_F(ImageLockTest, ReadersShareAndWritersExclude) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const UniqueFd c = open();
  const auto first = ImageLock::acquire(a.get(), path_, LockRequest::format_reader());
  ASSERT_TRUE(first);
  const auto second = ImageLock::acquire(b.get(), path_, LockRequest::format_reader());
  ASSERT_TRUE(second);
  const auto writer = ImageLock::acquire(c.get(), path_, LockRequest::format_writer());
  ASSERT_FALSE(writer);
  EXPECT_EQ(writer.error().kind, ErrorKind::kInUse);
  EXPECT_EQ(writer.error().path, path_);
}

TEST_F(ImageLockTest, ARefusedRequestLeavesNoLockBehind) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const UniqueFd watcher = open();
  const auto held = ImageLock::acquire(a.get(), path_, LockRequest::format_reader());
  ASSERT_TRUE(held);
  ASSERT_FALSE(ImageLock::acquire(b.get(), path_, LockRequest::format_writer()));
  EXPECT_EQ(locked_bytes(watcher), (std::vector<off_t>{100, 201, 203}));
}

TEST_F(ImageLockTest, ARefusedChangeKeepsTheOldLocks) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const UniqueFd watcher = open();
  auto ours = ImageLock::acquire(a.get(), path_, LockRequest::format_reader());
  ASSERT_TRUE(ours);
  {
    const auto theirs = ImageLock::acquire(b.get(), path_, LockRequest::format_reader());
    ASSERT_TRUE(theirs);
    ASSERT_FALSE(ours->change(LockRequest::format_writer()));
    EXPECT_EQ(ours->held(), LockRequest::format_reader());
  }
  EXPECT_EQ(locked_bytes(watcher), (std::vector<off_t>{100, 201, 203}));
  ASSERT_TRUE(ours->change(LockRequest::format_writer()));
  EXPECT_EQ(locked_bytes(watcher), (std::vector<off_t>{100, 101, 103, 201, 203}));
  ASSERT_TRUE(ours->change(LockRequest::none()));
  EXPECT_TRUE(locked_bytes(watcher).empty());
}

TEST_F(ImageLockTest, TheMessageNamesTheLockTheHolderAndTheRemedy) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const auto held = ImageLock::acquire(a.get(), path_, {kLockWrite, 0});
  ASSERT_TRUE(held);
  const auto refused = ImageLock::acquire(b.get(), path_, LockRequest::format_reader());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "'" + path_ + "' is in use by this very process (it holds the write lock)");
  ASSERT_EQ(refused.error().notes.size(), 2u);
  EXPECT_NE(refused.error().notes[0].find("(pid " + std::to_string(::getpid()) + ")"), std::string::npos)
      << refused.error().notes[0];
  EXPECT_NE(refused.error().notes[1].find("shut down the virtual machine"), std::string::npos);
}

TEST_F(ImageLockTest, SaysWhatTheOtherSideDoesNotShare) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const auto held = ImageLock::acquire(a.get(), path_, {0, kLockResize});
  ASSERT_TRUE(held);
  const auto refused = ImageLock::acquire(b.get(), path_, {kLockResize, 0});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            "'" + path_ + "' is in use by this very process (it does not share the resize lock)");
}

TEST_F(ImageLockTest, MovedLocksAreReleasedOnce) {
  const UniqueFd a = open();
  const UniqueFd watcher = open();
  auto first = ImageLock::acquire(a.get(), path_, LockRequest::format_writer());
  ASSERT_TRUE(first);
  {
    ImageLock second = std::move(*first);
    EXPECT_FALSE(locked_bytes(watcher).empty());
  }
  EXPECT_TRUE(locked_bytes(watcher).empty());
}

TEST_F(ImageLockTest, WithoutAnyPermissionNothingIsLockedOrRefused) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  const auto writer = ImageLock::acquire(a.get(), path_, LockRequest::format_writer());
  ASSERT_TRUE(writer);
  EXPECT_TRUE(ImageLock::acquire(b.get(), path_, LockRequest::none()));
}

}  // namespace
}  // namespace varve
