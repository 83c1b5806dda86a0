#include "store/domain_lock.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <thread>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using Mode = DomainLock::Mode;
using testing::HasSubstr;

class DomainLockTest : public testing::Test {
 protected:
  test::TempDir dir_;
  Layout layout_ = *Layout::open(dir_.path());
};

TEST_F(DomainLockTest, ReadersShareAndChangersExclude) {
  const auto reader = DomainLock::acquire(layout_, "vm", Mode::kShared, "vm show vm");
  ASSERT_TRUE(reader) << reader.error().message;
  const auto second = DomainLock::try_acquire(layout_, "vm", Mode::kShared, "vm list");
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->has_value());
  const auto changer = DomainLock::try_acquire(layout_, "vm", Mode::kExclusive, "snapshot create vm");
  ASSERT_TRUE(changer);
  EXPECT_FALSE(changer->has_value());
}

TEST_F(DomainLockTest, DomainsAreIndependent) {
  const auto one = DomainLock::acquire(layout_, "a b", Mode::kExclusive, "x");
  ASSERT_TRUE(one);
  const auto other = DomainLock::try_acquire(layout_, "ä", Mode::kExclusive, "y");
  ASSERT_TRUE(other);
  EXPECT_TRUE(other->has_value());
}

TEST_F(DomainLockTest, AWaiterIsToldForWhomAndGetsTheLockAfterwards) {
  auto holder = DomainLock::acquire(layout_, "vm", Mode::kExclusive, "snapshot create vm before");
  ASSERT_TRUE(holder);
  std::promise<std::string> told;
  auto waiter = std::async(std::launch::async, [&] {
    return DomainLock::acquire(layout_, "vm", Mode::kShared, "vm show vm",
                               [&](const std::string& whom) { told.set_value(whom); });
  });
  EXPECT_EQ(told.get_future().get(), "pid " + std::to_string(::getpid()) + ", `snapshot create vm before`");
  {
    const DomainLock gone = std::move(*holder);
  }
  const auto lock = waiter.get();
  EXPECT_TRUE(lock) << lock.error().message;
}

TEST_F(DomainLockTest, AWaiterForReadersIsToldSoWhateverAnEarlierHolderLeft) {
  {
    ASSERT_TRUE(DomainLock::acquire(layout_, "vm", Mode::kExclusive, "vm define"));
  }
  auto reader = DomainLock::acquire(layout_, "vm", Mode::kShared, "vm show vm");
  ASSERT_TRUE(reader);
  std::promise<std::string> told;
  auto waiter = std::async(std::launch::async, [&] {
    return DomainLock::acquire(layout_, "vm", Mode::kExclusive, "vm undefine vm",
                               [&](const std::string& whom) { told.set_value(whom); });
  });
  EXPECT_EQ(told.get_future().get(), "commands that read it");
  {
    const DomainLock gone = std::move(*reader);
  }
  EXPECT_TRUE(waiter.get());
}

TEST_F(DomainLockTest, AnExclusiveLockEndsWithItsProcess) {
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = DomainLock::acquire(layout_, "vm", Mode::kExclusive, "snapshot create vm");
    ::_exit(lock ? 0 : 1);  // no destructor runs: as after a crash
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  const auto lock = DomainLock::try_acquire(layout_, "vm", Mode::kExclusive, "x");
  ASSERT_TRUE(lock);
  EXPECT_TRUE(lock->has_value());
}

TEST_F(DomainLockTest, TheFileOfALockThatSomebodyHasStays) {
  auto held = DomainLock::acquire(layout_, "gone", Mode::kShared, "x");
  ASSERT_TRUE(held);
  const auto in_use = DomainLock::remove_if_free(layout_, "gone");
  ASSERT_TRUE(in_use);
  EXPECT_FALSE(*in_use);
  EXPECT_TRUE(std::filesystem::exists(dir_.path() + Layout::lock_file("gone")));
  {
    const DomainLock released = std::move(*held);
  }
  const auto removed = DomainLock::remove_if_free(layout_, "gone");
  ASSERT_TRUE(removed);
  EXPECT_TRUE(*removed);
  EXPECT_FALSE(std::filesystem::exists(dir_.path() + Layout::lock_file("gone")));
}

// Who waited for a lock whose file went away must not have another one than those who come later.
TEST_F(DomainLockTest, WhoWaitedWhileTheFileWasReplacedHasTheLockThatOthersSee) {
  auto held = DomainLock::acquire(layout_, "vm", Mode::kExclusive, "x");
  ASSERT_TRUE(held);
  const std::string path = dir_.path() + Layout::lock_file("vm");
  std::atomic<bool> waits = false;
  std::optional<DomainLock> second;
  std::thread waiter([&] {
    auto lock = DomainLock::acquire(layout_, "vm", Mode::kExclusive, "y", [&](const std::string&) { waits = true; });
    if (lock) second.emplace(std::move(*lock));
  });
  while (!waits) std::this_thread::yield();
  std::filesystem::remove(path);
  {
    const DomainLock released = std::move(*held);
  }
  waiter.join();
  ASSERT_TRUE(second);
  const auto third = DomainLock::try_acquire(layout_, "vm", Mode::kExclusive, "z");
  ASSERT_TRUE(third);
  EXPECT_FALSE(third->has_value());
}

// Where no lock can be made, one that is there serves: for changes who may write to it, for looking everybody.
TEST_F(DomainLockTest, ALockThatIsThereServesInAClosedDirectory) {
  REQUIRES_ROOT();
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0755), 0);
  const std::string directory = *layout_.make_directories(Layout::lock_directory());
  const std::string file = directory + "/vm";
  std::ofstream(file).flush();
  ASSERT_EQ(::chown(file.c_str(), 65534, 65534), 0);
  ASSERT_EQ(::seteuid(65534), 0);
  const auto theirs = DomainLock::try_acquire(layout_, "vm", Mode::kExclusive, "x");
  const auto none = DomainLock::try_acquire(layout_, "other", Mode::kExclusive, "x");
  const auto looking = DomainLock::try_acquire(layout_, "other", Mode::kShared, "x");
  ASSERT_EQ(::seteuid(0), 0);
  ASSERT_TRUE(theirs) << theirs.error().message;
  EXPECT_TRUE(theirs->has_value());
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().kind, ErrorKind::kPermission);
  EXPECT_TRUE(looking && looking->has_value());
}

TEST_F(DomainLockTest, ALockFileThatIsALinkIsNotFollowed) {
  ASSERT_TRUE(layout_.make_directories(Layout::lock_directory()));
  const std::string target = dir_.path() + "/precious";
  {
    const int fd = ::open(target.c_str(), O_CREAT | O_WRONLY, 0600);
    ASSERT_EQ(::write(fd, "keep", 4), 4);
    ::close(fd);
  }
  ASSERT_EQ(::symlink(target.c_str(), (dir_.path() + Layout::lock_file("vm")).c_str()), 0);
  EXPECT_FALSE(DomainLock::acquire(layout_, "vm", Mode::kExclusive, "x"));
  EXPECT_EQ(std::filesystem::file_size(target), 4u);
}

}  // namespace
}  // namespace varve
