// Ends the process before every durable step of real operations on a domain with one qcow2 disk, and with three: after
// the recovery, all images and documents are of the old state or all of the new one, also where the recovery itself was
// ended before any of its steps.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "crash/domain_operations.h"
#include "crash/examined_states.h"
#include "host/directory_host.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {
namespace {

constexpr int kStopped = 42;

// Does the work in a process of its own that ends before step `step`. Whether it got that far.
bool stops_before(int step, const std::string& root, const Work& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    int seen = 0;
    const auto ran = run_on(
        root,
        [&](std::string_view) {
          if (seen++ == step) ::_exit(kStopped);
        },
        work);
    ::_exit(ran ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_TRUE(WEXITSTATUS(status) == kStopped || WEXITSTATUS(status) == 0) << "step " << step;
  return WEXITSTATUS(status) == kStopped;
}

Result<void> nothing(Host&) {
  return {};
}

struct Case {
  DomainOperation operation;
  int disks;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.operation.name;
}

class OperationCrashTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    make_domain(pristine(), GetParam().disks);
    if (GetParam().operation.before) GetParam().operation.before(pristine());
  }
  std::string pristine() const { return dir_ / "pristine"; }
  std::string root() const { return dir_ / "host"; }
  void restore() const {
    std::filesystem::remove_all(root());
    std::filesystem::copy(pristine(), root(), std::filesystem::copy_options::recursive);
  }

  TempDir dir_;
};

TEST_P(OperationCrashTest, LeavesTheOldStateOrTheNewOne) {
  const auto& [operation, disks] = GetParam();
  restore();
  const auto old_state = look_at(root());
  const auto done = run_on(root(), {}, operation.work);
  ASSERT_TRUE(done) << done.error().message;
  const auto new_state = look_at(root());
  ASSERT_NE(old_state, new_state);

  int step = 0;
  int old_outcomes = 0;
  int new_outcomes = 0;
  for (bool stopped = true; stopped && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    restore();
    stopped = stops_before(step, root(), operation.work);
    ASSERT_TRUE(DirectoryHost::open(root(), {}));  // recovers
    const auto state = look_at(root());
    count_examined_states();
    EXPECT_TRUE(state == old_state || state == new_state) << testing::PrintToString(state);
    (state == new_state ? new_outcomes : old_outcomes)++;
    // The same, with the recovery ended before each of its own steps.
    for (int again = 0; stopped && !HasFailure(); ++again) {
      SCOPED_TRACE(testing::Message() << "recovery stopped before step " << again);
      restore();  // not a copy of what was stopped: the record knows its files by their inodes
      ASSERT_TRUE(stops_before(step, root(), operation.work));
      if (!stops_before(again, root(), nothing)) break;
      ASSERT_TRUE(DirectoryHost::open(root(), {}));
      count_examined_states();
      EXPECT_TRUE(look_at(root()) == state);
    }
  }
  EXPECT_GE(step, operation.least_steps);
  EXPECT_GE(old_outcomes, operation.least_old);
  EXPECT_GE(new_outcomes, 4);
}

INSTANTIATE_TEST_SUITE_P(All, OperationCrashTest, testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (const int disks : {1, 3})
                             for (const DomainOperation& operation : domain_operations())
                               cases.push_back({operation, disks});
                           return cases;
                         }()),
                         [](const auto& instance) {
                           return instance.param.operation.name + std::to_string(instance.param.disks);
                         });

// A name that was claimed and no more is an empty file, which is in nobody's way.
TEST(CreateDomainCrashTest, ADomainIsMadeWithAllItsImagesOrNotAtAll) {
  REQUIRES_PROGRAM("qemu-img");
  const TempDir dir;
  int step = 0;
  for (bool stopped = true; stopped; ++step) {
    SCOPED_TRACE(step);
    const std::string root = dir / ("host" + std::to_string(step));
    stopped = stops_before(step, root, create_domain("vm", 2));
    const auto host = DirectoryHost::open(root, {});
    ASSERT_TRUE(host);
    const bool defined = *(*host)->definitions().exists("vm");
    EXPECT_TRUE(defined || stopped);
    for (const int disk : {0, 1}) {
      std::error_code missing;
      const auto size = std::filesystem::file_size(image_path(root, disk), missing);
      EXPECT_TRUE(defined ? !missing && size > 0 : missing || size == 0) << disk;
    }
    if (!defined) {
      const auto again = run_on(root, {}, create_domain("vm", 2));
      EXPECT_TRUE(again) << again.error().message;
    }
    for (const int disk : {0, 1}) run_ok({"qemu-img", "check", "-f", "qcow2", image_path(root, disk)});
  }
  EXPECT_GE(step, 8);
}

// Between the claim of a name and its image somebody else writes to it: the first one or the second, before its turn or
// long before.
TEST(CreateDomainCrashTest, WhatSomebodyElseWroteMeanwhileStays) {
  for (const int theirs : {0, 1}) {
    for (const std::string before : {"vm.qcow2", "vm-2.qcow2"}) {
      if (theirs == 0 && before == "vm-2.qcow2") continue;  // it is an image by then
      SCOPED_TRACE(testing::Message() << theirs << " written before the turn of " << before);
      const TempDir dir;
      const std::string root = dir / "host";
      const auto write = [&](std::string_view step) {
        if (!step.starts_with("fill ") || !step.ends_with("/" + before)) return;
        std::ofstream(image_path(root, theirs)) << "theirs";
        // And the first one can't be filled, for another reason.
        if (theirs == 1 && before == "vm.qcow2") std::filesystem::remove(image_path(root, 0));
      };
      const auto made = run_on(root, write, create_domain("vm", 2));
      ASSERT_FALSE(made);
      EXPECT_EQ(read_whole_file(image_path(root, theirs)), "theirs");
      EXPECT_FALSE(std::filesystem::exists(image_path(root, 1 - theirs)));
      const auto host = DirectoryHost::open(root, {});
      ASSERT_TRUE(host) << host.error().message;
      EXPECT_FALSE(*(*host)->definitions().exists("vm"));
      EXPECT_EQ(read_whole_file(image_path(root, theirs)), "theirs");
    }
  }
}

}  // namespace
}  // namespace varve::test
