// The same as operation_crash_test.cc on a host of libvirt: the process ends before every durable step of an operation
// whose documents go to a real libvirtd through its API. After the recovery, the images, and the files that libvirtd
// keeps its documents in, are of the old state or all of the new one, also where the recovery itself was ended.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "crash/domain_operations.h"
#include "crash/examined_states.h"
#include "libvirt/libvirt_host.h"
#include "support/libvirtd.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {
namespace {

constexpr int kStopped = 42;
constexpr int kDisks = 2;

Result<void> nothing(Host&) {
  return {};
}

class LibvirtCrashTest : public testing::TestWithParam<DomainOperation> {
 protected:
  void SetUp() override {
    REQUIRES_LIBVIRTD();
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    make_domain(pristine(), kDisks);
    if (GetParam().before) GetParam().before(pristine());
    std::filesystem::copy(pristine(), root(), std::filesystem::copy_options::recursive);
    libvirtd_ = std::make_unique<Libvirtd>(root());
  }
  std::string pristine() const { return dir_ / "pristine"; }
  std::string root() const { return dir_ / "host"; }

  // In a process of its own, which ends before step `step` where it gets that far. Its exit code.
  int run_there(const Work& work, int step = -1) const {
    const pid_t child = ::fork();
    if (child == 0) {
      if (!libvirtd_->enter()) ::_exit(2);
      int seen = 0;
      HostEvents events;
      events.step = [&](std::string_view) {
        if (seen++ == step) ::_exit(kStopped);
      };
      events.not_recovered = [](const Error& error) { std::fprintf(stderr, "%s\n", error.message.c_str()); };
      const auto host =
          libvirt::open_host("qemu:///system", {.configuration = "", .data = "", .state = "", .is_root = true}, events);
      if (!host) std::fprintf(stderr, "%s\n", host.error().message.c_str());
      const auto done = host ? work(**host) : Result<void>(host.error());
      if (!done) std::fprintf(stderr, "%s\n", done.error().message.c_str());
      ::_exit(done ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
  }
  bool stops_before(int step, const Work& work) const {
    const int code = run_there(work, step);
    EXPECT_TRUE(code == kStopped || code == 0) << "step " << step;
    return code == kStopped;
  }

  // Everything as it was in the beginning, without a new libvirtd.
  void restore() const {
    const std::string images = "/var/lib/libvirt/images";
    EXPECT_FALSE(std::filesystem::exists(root() + "/var/lib/varve/journal/vm.journal"));
    ASSERT_EQ(run_there([&](Host& host) -> Result<void> {
                TRY(host.check_writable());
                for (const std::string& name : TRY(host.metadata().names("vm"))) {
                  TRY(host.writer().write(MetadataStore::removing("vm", name)));
                }
                TRY(host.writer().write(DefinitionStore::removing("vm")));
                std::filesystem::remove_all(images);
                std::filesystem::copy(pristine() + images, images, std::filesystem::copy_options::recursive);
                const DefinitionFiles definitions(TRY(Layout::open(pristine())));
                TRY(host.writer().write(DefinitionStore::saving(TRY(definitions.load("vm")))));
                const MetadataFiles metadata(TRY(Layout::open(pristine())));
                const SnapshotTree tree(TRY(metadata.list("vm")).snapshots);
                for (const SnapshotSummary* snapshot : tree.topological()) {
                  TRY(host.writer().write(MetadataStore::saving("vm", TRY(metadata.load("vm", snapshot->name)))));
                }
                return {};
              }),
              0);
  }
  std::vector<std::string> look() const {
    std::vector<std::string> seen;
    for (const char* directory : {"/etc/libvirt/qemu", "/var/lib/libvirt/qemu/snapshot", "/var/lib/libvirt/images"}) {
      if (!std::filesystem::exists(root() + directory)) continue;
      for (std::string& entry : look_at(root() + directory)) seen.push_back(std::move(entry));
    }
    return seen;
  }

  TempDir dir_;
  std::unique_ptr<Libvirtd> libvirtd_;
};

TEST_P(LibvirtCrashTest, LeavesTheOldStateOrTheNewOne) {
  const DomainOperation& operation = GetParam();
  restore();
  const auto old_state = look();
  ASSERT_EQ(run_there(operation.work), 0);
  const auto new_state = look();
  ASSERT_NE(old_state, new_state);

  int step = 0;
  int old_outcomes = 0;
  int new_outcomes = 0;
  for (bool stopped = true; stopped && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    restore();
    stopped = stops_before(step, operation.work);
    ASSERT_EQ(run_there(nothing), 0);  // recovers
    const auto state = look();
    count_examined_states();
    EXPECT_TRUE(state == old_state || state == new_state) << testing::PrintToString(state);
    (state == new_state ? new_outcomes : old_outcomes)++;
    if (state == old_state) continue;
    for (int again = 0; stopped && !HasFailure(); ++again) {
      SCOPED_TRACE(testing::Message() << "recovery stopped before step " << again);
      restore();
      ASSERT_TRUE(stops_before(step, operation.work));
      if (!stops_before(again, nothing)) break;
      ASSERT_EQ(run_there(nothing), 0);
      count_examined_states();
      EXPECT_TRUE(look() == state);
    }
  }
  EXPECT_GE(step, operation.least_steps);
  EXPECT_GE(old_outcomes, operation.least_old);
  EXPECT_GE(new_outcomes, 4);
}

INSTANTIATE_TEST_SUITE_P(All, LibvirtCrashTest, testing::ValuesIn([] {
                           std::vector<DomainOperation> operations;
                           for (const DomainOperation& operation : domain_operations()) {
                             // A file that libvirtd can't understand it does not load either.
                             if (operation.name != "Repair") operations.push_back(operation);
                           }
                           return operations;
                         }()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace varve::test
