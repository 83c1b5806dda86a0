// A machine that moves to another host, and the process ends before every durable step. At each moment it is whole on
// one of the two hosts at least; and the same command, given again, moves it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "crash/domain_operations.h"
#include "crash/examined_states.h"
#include "host/directory_host.h"
#include "support/process.h"
#include "support/temp_dir.h"
#include "transfer/transfer.h"

namespace varve::test {
namespace {

namespace fs = std::filesystem;

constexpr int kStopped = 42;

// What is the machine's, without what Varve keeps for itself.
std::vector<std::string> machine_in(const std::string& root) {
  std::vector<std::string> seen;
  for (const char* directory :
       {"/etc/libvirt/qemu", "/var/lib/libvirt/qemu/snapshot", "/var/lib/libvirt/images", "/srv"}) {
    if (!fs::exists(root + directory)) continue;
    for (std::string& entry : look_at(root + directory)) seen.push_back(std::move(entry));
  }
  return seen;
}

class TransferCrashTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    make_domain(pristine(), 2);
    // Of today, the second disk is an overlay, whose backing file has another name on the other host.
    const std::string directory = pristine() + "/srv/overlays";
    fs::create_directories(directory);
    run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../../var/lib/libvirt/images/vm-2.qcow2",
            directory + "/top.qcow2"});
    const std::string definition = "etc/libvirt/qemu/vm.xml";
    std::string xml = read_whole_file(pristine() + "/" + definition);
    const std::string base = "/var/lib/libvirt/images/vm-2.qcow2";
    ASSERT_NE(xml.find(base), std::string::npos);
    xml.replace(xml.find(base), base.size(), "/srv/overlays/top.qcow2");
    dir_.write("pristine/" + definition, xml);
  }
  std::string pristine() const { return dir_ / "pristine"; }
  std::string source() const { return dir_ / "source"; }
  std::string target() const { return dir_ / "target"; }

  void restore() const {
    fs::remove_all(source());
    fs::remove_all(target());
    fs::copy(pristine(), source(), fs::copy_options::recursive);
  }

  // Ends before step `step`, where it gets that far; the exit code of the process that did it.
  int move(int step = -1) const {
    const pid_t child = ::fork();
    if (child == 0) {
      const auto done = move_here(step);
      if (!done) {
        std::fprintf(stderr, "%s\n", done.error().message.c_str());
        for (const std::string& note : done.error().notes) std::fprintf(stderr, "  %s\n", note.c_str());
      }
      ::_exit(done ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
  }
  Result<void> move_here(int step) const {
    int seen = 0;
    HostEvents events;
    events.step = [&](std::string_view) {
      if (seen++ == step) ::_exit(kStopped);
    };
    const auto from = TRY(DirectoryHost::open(source(), events));
    const auto to = TRY(DirectoryHost::open_or_create(target(), events));
    Transfer transfer = TRY(Transfer::plan(*from, *to,
                                           {.purpose = TransferPurpose::kMove,
                                            .domain = "vm",
                                            .images_directory = "/srv/all",
                                            .verifies = true,
                                            .command = "vm move 'vm'"}));
    TRY(transfer.run({}));
    TRY(transfer.remove_source());
    return {};
  }

  TempDir dir_{TempDir::kInMemory};
};

TEST_F(TransferCrashTest, IsWholeSomewhereAndGoesOn) {
  restore();
  const auto whole = machine_in(source());
  ASSERT_EQ(move(), 0);
  const auto moved = machine_in(target());
  int step = 0;
  int on_target = 0;
  for (bool stopped = true; stopped && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    restore();
    const int code = move(step);
    ASSERT_TRUE(code == kStopped || code == 0);
    stopped = code == kStopped;
    count_examined_states();
    const bool is_here = machine_in(source()) == whole;
    const bool is_there = machine_in(target()) == moved;
    EXPECT_TRUE(is_here || is_there);
    on_target += is_there ? 1 : 0;
    const int again = move();
    // What the journal finishes by itself leaves nothing to move.
    EXPECT_TRUE(again == 0 || !fs::exists(source() + "/etc/libvirt/qemu/vm.xml")) << again;
    EXPECT_EQ(machine_in(target()), moved);
    EXPECT_FALSE(fs::exists(source() + "/etc/libvirt/qemu/vm.xml"));
    EXPECT_FALSE(fs::exists(image_path(source(), 0)));
    // What the journal has finished by itself leaves a note of the transfer, which the next one clears.
    EXPECT_TRUE(again != 0 || !fs::exists(target() + "/var/lib/varve/transfer/vm.json"));
  }
  EXPECT_GE(step, 15);
  EXPECT_GE(on_target, 3);
}

// What an earlier attempt has copied, and even given its name, is not taken for what the source is now.
TEST_F(TransferCrashTest, ASourceThatHasChangedMeanwhileIsCopiedAnew) {
  int moved = 0;
  int refused = 0;
  for (int step = 0; step < 100 && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    restore();
    if (move(step) != kStopped) break;
    if (!fs::exists(source() + "/etc/libvirt/qemu/vm.xml")) continue;
    const std::string image = image_path(source(), 0);
    if (run({"qemu-io", "-f", "qcow2", "-c", "write -P 0x77 0 64k", image}).exit_code != 0) continue;
    fs::copy_file(image, dir_ / "now", fs::copy_options::overwrite_existing);
    count_examined_states();
    if (move() == 0) {
      ++moved;
      run_ok({"qemu-img", "compare", dir_ / "now", target() + "/srv/all/vm.qcow2"});
    } else if (fs::exists(source() + "/etc/libvirt/qemu/vm.xml")) {
      ++refused;  // the other host has it already, as it was before
      run_ok({"qemu-img", "compare", dir_ / "now", image});
    }
  }
  EXPECT_GE(moved, 8);
  EXPECT_GE(refused, 1);
}

}  // namespace
}  // namespace varve::test
