// Ends the process before every durable step of real operations on a domain with two qcow2 disks: after the recovery,
// both images and the documents are all of the old state or all of the new one, and `qemu-img check` finds no fault.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "host/host.h"
#include "operation/create_domain.h"
#include "operation/create_snapshot.h"
#include "operation/delete_snapshot.h"
#include "operation/edit_snapshot.h"
#include "operation/repair.h"
#include "operation/revert_snapshot.h"
#include "operation/undefine_domain.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

constexpr int kStopped = 42;
constexpr uint64_t kNow = 1'800'000'000;

using Work = std::function<Result<void>(Host&)>;  // plans and runs

// What there is to see of a host: documents, and per image its snapshots and every point's contents.
std::vector<std::string> look(const std::string& root) {
  std::vector<std::string> seen;
  std::set<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.is_regular_file()) files.insert(entry.path());
  }
  for (const auto& path : files) {
    const std::string name = path.lexically_relative(root).string();
    if (name.starts_with("var/lib/varve/lock")) continue;
    if (path.extension() != ".qcow2") {
      seen.push_back(name + "\n" + test::read_whole_file(path.string()));
      continue;
    }
    const auto check = test::run({"qemu-img", "check", "-f", "qcow2", path.string()});
    EXPECT_EQ(check.exit_code, 0) << check.out << check.err;
    std::string image = name + "\n" + test::run_ok({"qemu-img", "snapshot", "-l", path.string()});
    image += test::run_ok({"qemu-io", "-f", "qcow2", "-c", "read -v 1M 512", path.string()}).substr(0, 200);
    seen.push_back(image);
  }
  return seen;
}

class OperationCrashTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    std::filesystem::create_directory(dir_ / "pristine");
  }
  static std::string image(const std::string& root, const char* file) {
    return root + "/var/lib/libvirt/images/" + file;
  }
  static Result<void> run_on(const std::string& root, const StepHook& hook, const Work& plan) {
    HostEvents events;
    events.step = hook;
    const auto host = Host::open_or_create(root, events);
    if (!host) return host.error();
    return plan(**host);
  }
  // The domain "vm" with two disks, two snapshots "a" <- "b", and contents that differ between them.
  void make_pristine() {
    const std::string root = dir_ / "pristine";
    ASSERT_TRUE(run_on(root, {}, create_domain("vm")));
    int byte = 1;
    for (const char* name : {"a", "b", ""}) {
      for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
        test::run_ok(
            {"qemu-io", "-f", "qcow2", "-c", "write -P " + std::to_string(byte++) + " 1M 256k", image(root, file)});
      }
      if (*name != '\0') {
        const auto made = run_on(root, {}, create_snapshot(name));
        ASSERT_TRUE(made) << made.error().message;
      }
    }
  }
  static Work create_domain(const std::string& name) {
    return [name](Host& host) -> Result<void> {
      CreateDomainRequest request;
      request.name = name;
      for (int i = 0; i < 2; ++i) {
        request.disks.emplace_back();
        request.disks.back().options.size = 4 << 20;
      }
      Operation operation = TRY(plan_create_domain(host, request));
      return operation.run();
    };
  }
  static Work create_snapshot(const std::string& name) {
    return [name](Host& host) -> Result<void> {
      CreateSnapshotRequest request;
      request.domain = "vm";
      request.name = name;
      request.now_sec = kNow;
      Operation operation = TRY(plan_create_snapshot(host, request));
      return operation.run();
    };
  }
  static Work revert_to(const std::string& name, bool safety) {
    return [name, safety](Host& host) -> Result<void> {
      RevertSnapshotRequest request;
      request.domain = "vm";
      request.name = name;
      request.safety = safety;
      request.now_sec = kNow;
      RevertSnapshot revert = TRY(plan_revert_snapshot(host, request));
      return revert.operation.run();
    };
  }

  // Stops `plan` before each of its steps in turn, on a fresh copy of the pristine host, and recovers. `at_least_old`: so
  // many steps come before the record of the journal.
  void expect_old_or_new(const Work& plan, int at_least_steps, int at_least_old = 4) {
    const std::string root = dir_ / "host";
    const auto restore = [&] {
      std::filesystem::remove_all(root);
      test::run_ok({"cp", "-a", "--sparse=always", dir_ / "pristine", root});
    };
    restore();
    const auto old_state = look(root);
    const auto done = run_on(root, {}, plan);
    ASSERT_TRUE(done) << done.error().message;
    const auto new_state = look(root);
    ASSERT_NE(old_state, new_state);

    int step = 0;
    int old_outcomes = 0;
    int new_outcomes = 0;
    for (bool stopped = true; stopped; ++step) {
      restore();
      const pid_t child = ::fork();
      if (child == 0) {
        int seen = 0;
        const auto ran = run_on(
            root,
            [&](std::string_view) {
              if (seen++ == step) ::_exit(kStopped);
            },
            plan);
        ::_exit(ran ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status));
      stopped = WEXITSTATUS(status) == kStopped;
      ASSERT_TRUE(stopped || WEXITSTATUS(status) == 0) << "step " << step;
      ASSERT_TRUE(Host::open(root, {})) << "step " << step;  // recovers
      const auto state = look(root);
      EXPECT_TRUE(state == old_state || state == new_state) << "stopped before step " << step << "\n"
                                                            << testing::PrintToString(state);
      (state == new_state ? new_outcomes : old_outcomes)++;
    }
    EXPECT_GE(step, at_least_steps);
    EXPECT_GE(old_outcomes, at_least_old);
    EXPECT_GE(new_outcomes, 4);
  }

  test::TempDir dir_;
};

// A name that was claimed and no more is an empty file, which is in nobody's way.
TEST_F(OperationCrashTest, ADomainIsMadeWithAllItsImagesOrNotAtAll) {
  int step = 0;
  for (bool stopped = true; stopped; ++step) {
    SCOPED_TRACE(step);
    const std::string root = dir_ / ("host" + std::to_string(step));
    const pid_t child = ::fork();
    if (child == 0) {
      int seen = 0;
      const auto ran = run_on(
          root,
          [&](std::string_view) {
            if (seen++ == step) ::_exit(kStopped);
          },
          create_domain("vm"));
      ::_exit(ran ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    stopped = WEXITSTATUS(status) == kStopped;
    const auto host = Host::open(root, {});
    ASSERT_TRUE(host);
    const bool defined = *(*host)->definitions().exists("vm");
    EXPECT_TRUE(defined || stopped);
    for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
      std::error_code missing;
      const auto size = std::filesystem::file_size(image(root, file), missing);
      EXPECT_TRUE(defined ? !missing && size > 0 : missing || size == 0) << file;
    }
    if (!defined) {
      const auto again = run_on(root, {}, create_domain("vm"));
      EXPECT_TRUE(again) << again.error().message;
    }
    for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
      test::run_ok({"qemu-img", "check", "-f", "qcow2", image(root, file)});
    }
  }
  EXPECT_GE(step, 8);
}

TEST_F(OperationCrashTest, Create) {
  make_pristine();
  expect_old_or_new(create_snapshot("c"), 10);
}

TEST_F(OperationCrashTest, RevertWithSafetySnapshot) {
  make_pristine();
  expect_old_or_new(revert_to("a", true), 10);
}

TEST_F(OperationCrashTest, RevertThatPrunesAnEarlierSafetySnapshot) {
  make_pristine();
  ASSERT_TRUE(run_on(dir_ / "pristine", {}, revert_to("a", true)));
  expect_old_or_new(revert_to("b", true), 10);
}

TEST_F(OperationCrashTest, Delete) {
  make_pristine();
  expect_old_or_new(
      [](Host& host) -> Result<void> {
        DeleteSnapshotRequest request;
        request.domain = "vm";
        request.name = "a";
        Operation operation = TRY(plan_delete_snapshot(host, request));
        return operation.run();
      },
      10);
}

TEST_F(OperationCrashTest, Rename) {
  make_pristine();
  expect_old_or_new(
      [](Host& host) -> Result<void> {
        EditSnapshotRequest request;
        request.domain = "vm";
        request.name = "a";
        request.new_name = "ä new name";
        Operation operation = TRY(plan_edit_snapshot(host, request));
        return operation.run();
      },
      10);
}

TEST_F(OperationCrashTest, UndefineWithSnapshots) {
  make_pristine();
  expect_old_or_new(
      [](Host& host) -> Result<void> {
        UndefineDomainRequest request;
        request.domain = "vm";
        request.snapshots = true;
        Operation operation = TRY(plan_undefine_domain(host, request));
        return operation.run();
      },
      10);
}

// One snapshot that nobody knows, one that both images have lost, one file that can't be read: all mended, or nothing.
TEST_F(OperationCrashTest, RepairOfADomain) {
  make_pristine();
  const std::string root = dir_ / "pristine";
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    test::run_ok({"qemu-img", "snapshot", "-c", "unknown", image(root, file)});
    test::run_ok({"qemu-img", "snapshot", "-d", "b", image(root, file)});
  }
  std::ofstream(root + "/var/lib/libvirt/qemu/snapshot/vm/broken.xml") << "<domainsnapshot>";
  expect_old_or_new(
      [](Host& host) -> Result<void> {
        RepairDomain repair = TRY(plan_repair_domain(host, {.domain = "vm", .now_sec = kNow}));
        return repair.operation.run();
      },
      8, 3);  // no disk is prepared
}

}  // namespace
}  // namespace varve
