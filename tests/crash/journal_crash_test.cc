// Ends the process before every durable step of an operation on two images and three documents, and before every step
// of the recovery that follows, and looks at what is there: exactly the old state, or exactly the new one. The images
// are stand-ins of a header sector and a body; what a real commit does to a real image is crash-tested with the engine.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "base/endian.h"
#include "crash/examined_states.h"
#include "io/file_device.h"
#include "store/journal.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

constexpr int kStopped = 42;

qcow2::HeaderSector sector_with(uint8_t fill) {
  qcow2::HeaderSector sector;
  sector.fill(std::byte{fill});
  store_be(sector.data(), qcow2::kMagic);
  return sector;
}

// What the tree says: the contents of every file of the operation, "-" for one that is not there.
using Snapshot = std::vector<std::string>;

class Tree {
 public:
  Tree() : layout_(*Layout::open(dir_.path())) {
    for (const char* d : {"/images", "/etc/libvirt/qemu", "/snapshot/vm"}) {
      std::filesystem::create_directories(dir_.path() + d);
    }
    for (const char* image : {"a", "b"}) {
      std::ofstream(dir_ / (std::string("images/") + image), std::ios::binary)
          << bytes_of(sector_with(1)) << std::string(4096, *image);
    }
    dir_.write("etc/libvirt/qemu/vm.xml", "old definition");
    dir_.write("snapshot/vm/gone.xml", "old snapshot");
    record_.domain = "vm";
    record_.operation = "snapshot revert vm s";
    for (const char* image : {"a", "b"}) {
      JournalImage entry;
      entry.target = image;
      entry.path = std::string("/images/") + image;
      entry.before = sector_with(1);
      entry.after = sector_with(2);
      const auto file = FileDevice::open(dir_.path() + entry.path, Access::kReadWrite, LockRequest::format_writer());
      EXPECT_TRUE(file);
      entry.prepared = *sync_and_stamp(**file);
      record_.images.push_back(entry);
    }
    record_.changes = {{.path = "/etc/libvirt/qemu/vm.xml", .contents = "new definition"},
                       {.path = "/snapshot/vm/made.xml", .contents = "new snapshot"},
                       {.path = "/snapshot/vm/gone.xml", .contents = std::nullopt}};
  }

  // The operation, as src/operation runs it; the process ends before the step with this number.
  void operate(const StepHook& hook) {
    Journal journal(layout_, hook);
    if (!journal.write(record_)) return ::_exit(1);
    for (const JournalImage& image : record_.images) {
      const auto file = FileDevice::open(dir_.path() + image.path, Access::kReadWrite, LockRequest::format_writer());
      if (!file) return ::_exit(1);
      journal.step("commit");
      if (!qcow2::SnapshotTransaction::commit_sector(**file, image.before, image.after)) return ::_exit(1);
    }
    if (!journal.apply_changes(record_) || !journal.clear("vm")) return ::_exit(1);
  }

  void recover(const StepHook& hook) {
    if (!Journal(layout_, hook).recover("vm")) return ::_exit(1);
  }

  Snapshot look() const {
    Snapshot seen;
    for (const char* path :
         {"images/a", "images/b", "etc/libvirt/qemu/vm.xml", "snapshot/vm/made.xml", "snapshot/vm/gone.xml"}) {
      seen.push_back(std::filesystem::exists(dir_ / path) ? test::read_whole_file(dir_ / path) : "-");
    }
    return seen;
  }

  bool has_record() const { return Journal(layout_).read("vm")->has_value(); }

  // Everything that is neither document nor image has to be gone: temporary files, records.
  size_t count_files() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.path())) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }

 private:
  static std::string bytes_of(const qcow2::HeaderSector& sector) {
    return std::string(reinterpret_cast<const char*>(sector.data()), sector.size());
  }

  test::TempDir dir_{test::TempDir::kInMemory};
  Layout layout_;
  JournalRecord record_;
};

// Runs `work` in a process of its own that ends, without any cleaning up, before step `stop_at` (from 0). False once
// there is no such step and the work is done.
bool stopped_at(int stop_at, const std::function<void(const StepHook&)>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    int step = 0;
    work([&](std::string_view) {
      if (step++ == stop_at) ::_exit(kStopped);
    });
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kStopped)) << status;
  return WIFEXITED(status) && WEXITSTATUS(status) == kStopped;
}

Snapshot new_state() {
  Tree tree;
  tree.operate({});
  return tree.look();
}

TEST(JournalCrashTest, AfterACrashAtAnyStepRecoveryGivesTheOldStateOrTheNewOne) {
  const Snapshot new_seen = new_state();
  int step = 0;
  int old_outcomes = 0;
  for (;; ++step) {
    Tree tree;
    const Snapshot old_seen = tree.look();
    if (!stopped_at(step, [&](const StepHook& hook) { tree.operate(hook); })) break;
    test::count_examined_states();
    const bool recorded = tree.has_record();
    tree.recover({});
    const bool is_new = tree.look() == new_seen;
    EXPECT_TRUE(is_new || tree.look() == old_seen) << "stopped before step " << step;
    EXPECT_TRUE(is_new || !recorded) << "stopped before step " << step;
    EXPECT_FALSE(tree.has_record()) << "stopped before step " << step;
    EXPECT_EQ(tree.count_files(), 4u) << "stopped before step " << step;
    old_outcomes += is_new ? 0 : 1;
  }
  EXPECT_GE(step, 10) << "the operation has more durable steps than the test has seen";
  EXPECT_EQ(old_outcomes, 3) << "the record counts once it has its name, and not before";
}

TEST(JournalCrashTest, ARecoveryThatIsInterruptedAtAnyStepCanBeRepeated) {
  const Snapshot new_seen = new_state();
  int pairs = 0;
  for (int first = 0;; ++first) {
    bool first_stopped = true;
    for (int second = 0;; ++second) {
      Tree tree;
      const Snapshot old_seen = tree.look();
      first_stopped = stopped_at(first, [&](const StepHook& hook) { tree.operate(hook); });
      if (!first_stopped) break;
      test::count_examined_states();
      const bool recorded = tree.has_record();
      const bool second_stopped = stopped_at(second, [&](const StepHook& hook) { tree.recover(hook); });
      tree.recover({});
      EXPECT_EQ(tree.look(), recorded                  ? new_seen
                             : tree.look() == new_seen ? new_seen
                                                       : old_seen)
          << "stopped before step " << first << ", recovery before its step " << second;
      EXPECT_EQ(tree.count_files(), 4u) << first << ", " << second;
      ++pairs;
      if (!second_stopped) break;
    }
    if (!first_stopped) break;
  }
  EXPECT_GE(pairs, 30);
}

}  // namespace
}  // namespace varve
