// Real file systems that go away in the middle of real operations: the disk is pulled out before each durable step
// (what was not flushed is lost, everything later fails with EIO), or the file system meets an error and goes
// read-only. After the file system is mounted again and the operation has recovered, the old state is there or the new
// one. So what the engine takes for durable is durable on ext4 and XFS: contents before names, names before what relies
// on them.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <utility>

#include "base/atomic_file.h"
#include "crash/domain_operations.h"
#include "crash/examined_states.h"
#include "host/directory_host.h"
#include "support/loop_file_system.h"
#include "support/process.h"

namespace varve::test {
namespace {

struct Case {
  const char* name;
  const char* mkfs;
  uint64_t bytes;
  const char* options;
  void (LoopFileSystem::*go_away)() const;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

class FileSystemCrash : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    REQUIRES_ROOT();
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    REQUIRES_PROGRAM("mkfs.ext4");
    REQUIRES_PROGRAM("mkfs.xfs");
  }
};

// The operation in a process of its own, to whose file system something happens before step `step`.
struct Outcome {
  bool went_away = false;  // there was such a step
  bool done = false;       // the operation says so
};

Outcome run_until(int step, const LoopFileSystem& disk, const Case& how, const Work& work) {
  constexpr int kWentAway = 1;
  constexpr int kDone = 2;
  const pid_t child = ::fork();
  if (child == 0) {
    int seen = 0;
    int code = 0;
    const auto ran = run_on(
        disk / "host",
        [&](std::string_view) {
          if (seen++ != step) return;
          (disk.*how.go_away)();
          code |= kWentAway;
        },
        work);
    ::_exit(code | (ran ? kDone : 0));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  return {(WEXITSTATUS(status) & kWentAway) != 0, (WEXITSTATUS(status) & kDone) != 0};
}

TEST_P(FileSystemCrash, LeavesTheOldStateOrTheNewOne) {
  const Case& how = GetParam();
  LoopFileSystem disk(how.mkfs, how.bytes, how.options);
  REQUIRES_MOUNTED(disk);
  const std::string root = disk / "host";
  make_domain(root, 2);
  disk.unmount();
  disk.keep();
  for (const DomainOperation& operation : domain_operations()) {
    if (!std::set<std::string>{"Create", "RevertWithSafetySnapshot", "Delete", "UndefineWithSnapshots"}.contains(
            operation.name))
      continue;
    SCOPED_TRACE(operation.name);
    const auto restore = [&] {
      disk.unmount();
      disk.restore();
      disk.mount();
    };
    restore();
    const auto old_state = look_at(root);
    const auto undisturbed = run_on(root, {}, operation.work);
    ASSERT_TRUE(undisturbed) << undisturbed.error().message;
    const auto new_state = look_at(root);

    int old_outcomes = 0;
    int new_outcomes = 0;
    for (int step = 0;; ++step) {
      SCOPED_TRACE(testing::Message() << how.name << " before step " << step);
      restore();
      const Outcome outcome = run_until(step, disk, how, operation.work);
      if (!outcome.went_away) break;
      disk.unmount();
      disk.mount();
      const auto host = DirectoryHost::open(root, {});  // recovers
      ASSERT_TRUE(host) << host.error().message;
      const auto state = look_at(root);
      count_examined_states();
      EXPECT_TRUE(state == old_state || state == new_state) << testing::PrintToString(state);
      EXPECT_TRUE(!outcome.done || state == new_state) << "said to be done, and is not";
      (state == new_state ? new_outcomes : old_outcomes)++;
      if (HasFailure()) return;
    }
    EXPECT_GE(old_outcomes, operation.least_old);
    EXPECT_GE(new_outcomes, 3);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FileSystemCrash,
                         testing::Values(Case{"Ext4PulledOut", "mkfs.ext4 -q", 48 << 20, "", &LoopFileSystem::pull_out},
                                         Case{"XfsPulledOut", "mkfs.xfs -q", 300 << 20, "", &LoopFileSystem::pull_out},
                                         Case{"Ext4GoesReadOnly", "mkfs.ext4 -q", 48 << 20, "errors=remount-ro",
                                              &LoopFileSystem::make_read_only_by_error}),
                         [](const auto& instance) { return std::string(instance.param.name); });

// These tests can fail: what was not flushed is lost.
TEST(FileSystemCrashItself, LosesWhatWasNotFlushed) {
  REQUIRES_ROOT();
  REQUIRES_PROGRAM("mkfs.xfs");
  for (const auto& [mkfs, bytes] : {std::pair{"mkfs.ext4 -q", 48 << 20}, std::pair{"mkfs.xfs -q", 300 << 20}}) {
    SCOPED_TRACE(mkfs);
    LoopFileSystem disk(mkfs, static_cast<uint64_t>(bytes));
    REQUIRES_MOUNTED(disk);
    ASSERT_TRUE(replace_file(disk / "flushed", "flushed"));
    std::ofstream(disk / "not flushed") << "not flushed";
    std::ofstream(disk / "flushed") << "overwritten and not flushed";
    disk.pull_out();
    disk.unmount();
    disk.mount();
    EXPECT_FALSE(std::filesystem::exists(disk / "not flushed"));
    EXPECT_NE(read_whole_file(disk / "flushed"), "overwritten and not flushed");
  }
}

}  // namespace
}  // namespace varve::test
