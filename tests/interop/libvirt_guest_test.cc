// The varve command on a machine in which something runs: a Linux (tests/support/make_guest.sh) that writes numbers to
// a log on its disk, one after the other, so that of every snapshot can be told which moment it holds.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <thread>

#include "base/unique_fd.h"
#include "interop/libvirt_domain.h"

namespace varve {
namespace {

using nlohmann::json;
using test::ProcessResult;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::chrono::seconds kPatience(60);
constexpr const char* kConsole = "/var/log/libvirt/qemu/guest.console";

class LibvirtGuestTest : public test::LibvirtDomain {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("mkfs.ext4");
    if (!std::filesystem::exists(VARVE_TEST_GUEST "/initrd")) GTEST_SKIP() << "needs a guest: scripts/setup --tests";
    LibvirtDomain::SetUp();
    if (!libvirtd_) return;
    for (const char* file : {"vmlinuz", "initrd"}) {
      std::filesystem::copy_file(std::string(VARVE_TEST_GUEST "/") + file, host_.image(file));
    }
    const std::string raw = directory_ / "disk.raw";
    test::run_ok({"truncate", "-s", "64M", raw});
    test::run_ok({"mkfs.ext4", "-q", "-F", raw});
    test::run_ok({"qemu-img", "convert", "-O", "qcow2", raw, host_.image("guest.qcow2")});
  }

  // With words that the guest's /init understands.
  void start(const std::string& words = "") const {
    directory_.write("guest.xml", fmt::format(R"(
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>160</memory>
  <os>
    <type arch='x86_64'>hvm</type>
    <kernel>{0}/vmlinuz</kernel>
    <initrd>{0}/initrd</initrd>
    <cmdline>console=ttyS0 quiet {1}</cmdline>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{0}/guest.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{2}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>)",
                                              "/var/lib/libvirt/images", words, kConsole));
    virsh({"define", directory_ / "guest.xml"});
    virsh({"start", "guest"});
    wait_for_ticks(3);
  }

  // The last number that the guest said it wrote; -1: none yet.
  int last_tick() const {
    const std::string console = libvirtd_->run_there({"cat", kConsole}).out;
    const size_t end = console.find_last_of('\n');
    const size_t at = console.rfind("wrote ", end);
    return at == std::string::npos ? -1 : std::stoi(console.substr(at + 6));
  }
  void wait_until(const std::string& what, const std::function<bool()>& happened) const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!happened()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << what << "\n"
                                                            << libvirtd_->run_there({"cat", kConsole}).out;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  // So many more from now on, whatever a revert has made of the count.
  void wait_for_ticks(size_t count) const {
    const auto lines = [&] {
      const std::string console = libvirtd_->run_there({"cat", kConsole}).out;
      return static_cast<size_t>(std::ranges::count(console, '\n'));
    };
    const size_t before = lines();
    wait_until("the guest goes on", [&] { return lines() >= before + count; });
  }
  void wait_for_agent() const {
    wait_until("the guest agent answers", [&] {
      return libvirtd_->virsh({"qemu-agent-command", "guest", R"({"execute":"guest-ping"})"}).exit_code == 0;
    });
  }
  bool is_frozen() const {
    return virsh({"qemu-agent-command", "guest", R"({"execute":"guest-fsfreeze-status"})"}).find("frozen") !=
           std::string::npos;
  }

  // The guest's file system, out of an image or of a point inside of it.
  std::string file_system(const std::string& file, const std::string& point = "") const {
    std::string raw = directory_ / "looked-at.raw";
    std::vector<std::string> command = {"qemu-img", "convert", "-f", "qcow2", "-O", "raw"};
    if (!point.empty()) command.insert(command.end(), {"-l", "snapshot.name=" + point});
    // A backing file is named as the libvirtd sees it.
    command.insert(command.end(), {"/var/lib/libvirt/images/" + file, raw});
    const ProcessResult converted = libvirtd_->run_there(command);
    EXPECT_EQ(converted.exit_code, 0) << converted.err;
    return raw;
  }
  static bool needs_recovery(const std::string& raw) {
    return test::run_ok({"dumpe2fs", "-h", raw}).find("needs_recovery") != std::string::npos;
  }
  // The last number of the log there, after what a mount would do. All before it must be there, each once.
  static int log_in(const std::string& raw) {
    EXPECT_LE(test::run({"e2fsck", "-f", "-y", raw}).exit_code, 1);
    std::istringstream log(test::run_ok({"debugfs", "-R", "cat /log", raw}));
    int next = 0;
    for (std::string line; std::getline(log, line); ++next) EXPECT_EQ(line, std::to_string(next));
    return next - 1;
  }

  // varve, running beside the test, on a terminal.
  std::unique_ptr<test::BackgroundProcess> begin(const std::string& arguments) const {
    const std::string command = fmt::format("cd /tmp && exec {} -c qemu:///system {}", VARVE_COMMAND, arguments);
    return std::make_unique<test::BackgroundProcess>(
        libvirtd_->command_there({"script", "--quiet", "--flush", "--return", "--command", command, "/dev/null"}));
  }

  test::TempDir directory_;
};

TEST_F(LibvirtGuestTest, EverySnapshotHoldsItsMoment) {
  start();
  varve_ok({"snapshot", "create", "guest", "first"});
  const int first = last_tick();
  wait_for_ticks(5);
  virsh({"snapshot-create-as", "guest", "second"});
  const int second = last_tick();
  wait_for_ticks(5);

  // Memory and disk are of one moment: what counts on goes on with the number that the disk has last.
  varve_ok({"snapshot", "revert", "guest", "first", "--no-safety"});
  wait_for_ticks(5);
  virsh({"snapshot-revert", "guest", "first"});
  wait_for_ticks(5);
  varve_ok({"snapshot", "revert", "guest", "second"});
  wait_for_ticks(5);
  const int last = last_tick();
  virsh({"destroy", "guest"});
  EXPECT_GE(log_in(file_system("guest.qcow2")), last);

  const int in_first = log_in(file_system("guest.qcow2", "first"));
  const int in_second = log_in(file_system("guest.qcow2", "second"));
  EXPECT_LE(in_first, first + 1);
  EXPECT_GE(in_first, 0);
  EXPECT_GT(in_second, in_first);
  EXPECT_LE(in_second, second + 1);
  host_.expect_clean("guest.qcow2");
}

TEST_F(LibvirtGuestTest, AQuiescedSnapshotIsOfAFileSystemAtRest) {
  start();
  wait_for_agent();
  varve_ok({"snapshot", "create", "guest", "rest", "--disk-only", "--quiesce"});
  EXPECT_FALSE(is_frozen());
  wait_for_ticks(3);
  varve_ok({"snapshot", "create", "guest", "cut", "--disk-only"});
  wait_for_ticks(3);
  virsh({"destroy", "guest"});
  const std::string rest = file_system("guest.qcow2");
  EXPECT_FALSE(needs_recovery(rest));
  EXPECT_EQ(test::run({"e2fsck", "-f", "-n", rest}).exit_code, 0);
  const int in_rest = log_in(rest);
  // As after a power cut, and yet nothing that was synced is missing.
  const std::string cut = file_system("guest.rest");
  EXPECT_TRUE(needs_recovery(cut));
  EXPECT_GT(log_in(cut), in_rest);
}

TEST_F(LibvirtGuestTest, AGuestThatFreezesTooSlowlyIsThawed) {
  start("freezes=6");
  wait_for_agent();
  const ProcessResult result =
      varve({"snapshot", "create", "guest", "late", "--disk-only", "--quiesce", "--quiesce-seconds", "2"});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("snapshot 'late' of 'guest' is not created"));
  EXPECT_THAT(result.err, HasSubstr("the guest's file systems are not frozen"));
  EXPECT_FALSE(is_frozen());
  wait_for_ticks(3);
  EXPECT_EQ(virsh({"snapshot-list", "guest", "--name"}), "\n");
  EXPECT_FALSE(std::filesystem::exists(host_.image("guest.late")));
}

TEST_F(LibvirtGuestTest, AGuestIsThawedThoughLibvirtdEndsMeanwhile) {
  start("freezes=4");
  wait_for_agent();
  const auto command = begin("snapshot create guest lost --disk-only --quiesce");
  // The agent has been told to freeze; now nobody waits for it any more.
  wait_until("the agent begins to freeze",
             [&] { return libvirtd_->run_there({"cat", kConsole}).out.find("freezing") != std::string::npos; });
  ASSERT_EQ(libvirtd_->run_there({"sh", "-c", "kill -9 $(cat /run/libvirtd.pid)"}).exit_code, 0);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  ASSERT_EQ(libvirtd_->run_there({"sh", "-c", "libvirtd -d </dev/null"}).exit_code, 0);
  EXPECT_EQ(command->close_and_wait(), 1);
  EXPECT_THAT(command->output(), HasSubstr("the guest's file systems are not frozen"));
  EXPECT_FALSE(is_frozen());
  wait_for_ticks(3);
}

TEST_F(LibvirtGuestTest, WithoutAnAgentNothingIsFrozen) {
  start();
  virsh({"destroy", "guest"});
  virsh({"start", "guest"});  // its agent comes seconds later
  const ProcessResult result = varve({"snapshot", "create", "guest", "none", "--disk-only", "--quiesce"});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("without --quiesce none is needed"));
}

// Its memory goes into a pipe that nobody empties, until it is stopped. Through a link, which leads there from
// libvirtd's working directory only: a file that is there is nothing to write a memory to.
TEST_F(LibvirtGuestTest, ASnapshotThatTakesTooLongIsStopped) {
  start();
  const std::string pipe = host_.image("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0666), 0);
  const UniqueFd reader(::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const std::string memory = "/var/lib/libvirt/images/memory";
  std::filesystem::create_symlink("/proc/self/cwd/var/lib/libvirt/images/pipe", host_.image("memory"));
  const auto command = begin("snapshot create guest long --mode external --live --memory-file " + memory);
  wait_until("its memory is being written",
             [&] { return virsh({"domjobinfo", "guest"}).find("Memory processed") != std::string::npos; });
  wait_for_ticks(3);  // it runs on meanwhile
  EXPECT_TRUE(command->wait_for("%"));
  command->write("\x03");  // Ctrl-C
  std::atomic<bool> stop = false;
  std::thread emptier([&] {  // QEMU notices only between two writes; the whole memory would take a minute
    std::array<char, 65536> buffer{};
    while (!stop) {
      (void)!::read(reader.get(), buffer.data(), buffer.size());
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  EXPECT_EQ(command->close_and_wait(), 1) << command->output();
  stop = true;
  emptier.join();
  EXPECT_THAT(command->output(), HasSubstr("it was stopped"));
  EXPECT_THAT(command->output(), HasSubstr("nothing was changed"));
  wait_for_ticks(3);
  EXPECT_EQ(virsh({"snapshot-list", "guest", "--name"}), "\n");
  EXPECT_FALSE(std::filesystem::exists(host_.image("guest.long")));
  virsh({"snapshot-create-as", "guest", "after"});  // no job is left
}

TEST_F(LibvirtGuestTest, MemoryAndDisksInFilesOfTheirOwn) {
  start();
  varve_ok({"snapshot", "create", "guest", "outside", "--mode", "external", "--live"});
  const int then = last_tick();
  wait_for_ticks(3);
  virsh({"destroy", "guest"});
  EXPECT_LE(log_in(file_system("guest.qcow2")), then + 1);
  EXPECT_GT(log_in(file_system("guest.outside")), then);
  const json report = varve_json({"verify", "guest"});
  EXPECT_EQ(report["status"], "ok") << report.dump(2);
}

TEST_F(LibvirtGuestTest, ItsSnapshotsAreOpenedWhileItRuns) {
  start();
  varve_ok({"snapshot", "create", "guest", "then"});
  const int most = last_tick() + 1;  // what it wrote by then, or was about to
  wait_for_ticks(5);
  varve_ok({"-q", "snapshot", "extract", "guest", "then", "/var/lib/libvirt/images/then.raw"});
  const int held = log_in(host_.image("then.raw"));
  EXPECT_GT(held, 0);
  EXPECT_LE(held, most);
#ifdef VARVE_NBDKIT_PLUGIN
  const std::string socket = "/var/lib/libvirt/images/socket";
  test::BackgroundProcess serving(libvirtd_->command_there(
      {VARVE_COMMAND, "-c", "qemu:///system", "snapshot", "serve", "guest", "then", "--socket", socket}));
  ASSERT_TRUE(serving.wait_for("Ctrl-C ends it")) << serving.output();
  const ProcessResult copied = libvirtd_->run_there(
      {"qemu-img", "convert", "-O", "raw", "nbd+unix:///vda?socket=" + socket, "/var/lib/libvirt/images/served.raw"});
  EXPECT_EQ(copied.exit_code, 0) << copied.err;
  EXPECT_EQ(log_in(host_.image("served.raw")), held);
  serving.kill();
#endif
  wait_for_ticks(1);
}

// With the kernel that it is started with, which stands in the definition and in no image.
TEST_F(LibvirtGuestTest, ItIsExportedWithItsKernelAndStartsAgain) {
  start();
  varve_ok({"snapshot", "create", "guest", "then", "--disk-only", "--mode", "external"});
  wait_for_ticks(2);
  virsh({"destroy", "guest"});
  const std::string out = directory_ / "export";
  varve_ok({"-q", "vm", "export", "guest", out});
  virsh({"undefine", "guest", "--snapshots-metadata"});
  for (const auto& file : std::filesystem::directory_iterator(host_.image(""))) {
    const std::string name = file.path().filename();
    if (name != "vm.qcow2" && name != "vm-2.qcow2") std::filesystem::remove(file);  // the other machine's stay
  }
  EXPECT_FALSE(std::filesystem::exists(host_.image("initrd")));
  varve_ok({"-q", "vm", "import", out});
  EXPECT_THAT(names({"snapshot-list", "guest", "--name"}), ElementsAre("then"));
  virsh({"start", "guest"});
  wait_for_ticks(3);
  virsh({"destroy", "guest"});
}

}  // namespace
}  // namespace varve
