// Snapshots of an image that a running QEMU writes to: served all the while, and never with wrong data
// (docs/locking.md).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "image/point.h"
#include "interop/nbd_server.h"

namespace varve {
namespace {

using test::BackgroundProcess;
using test::NbdServer;
using test::run;
using test::run_ok;
using testing::HasSubstr;
using testing::Not;

class NbdkitRunningMachineTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"nbdkit", "nbdcopy", "qemu-img", "qemu-io", "qemu-system-x86_64"}) {
      REQUIRES_PROGRAM(program);
    }
    run_ok({"qemu-img", "create", "-q", "-f", "qcow2", disk_, "64M"});
    run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 16M", disk_});
    machine_ = std::make_unique<BackgroundProcess>(std::vector<std::string>{
        "qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio",
        "-drive", "if=none,id=disk,format=qcow2,discard=unmap,file=" + disk_, "-device", "virtio-blk-pci,drive=disk"});
    ASSERT_TRUE(machine_->wait_for("QMP")) << machine_->output();
    machine_->write(R"({"execute": "qmp_capabilities"})");
  }

  // A command of the human monitor, done when it returns.
  void monitor(const std::string& command) {
    const int id = ++commands_;
    machine_->write(fmt::format(
        R"({{"execute": "human-monitor-command", "arguments": {{"command-line": "{}"}}, "id": {}}})", command, id));
    ASSERT_TRUE(machine_->wait_for(fmt::format("\"id\": {}}}", id))) << machine_->output();
    ASSERT_THAT(machine_->output(), Not(HasSubstr("Error"))) << command;
  }
  void machine_io(const std::string& command) { monitor(fmt::format(R"(qemu-io disk \"{}\")", command)); }

  // The machine's disk as it was when it started.
  std::string at_start() const { return std::string(16 << 20, 1) + std::string(48 << 20, 0); }
  std::string copied(const NbdServer& server) const {
    run_ok({"nbdcopy", server.uri(), dir_ / "copied.raw"});
    return test::read_whole_file(dir_ / "copied.raw");
  }

  test::TempDir dir_;
  std::string disk_ = dir_ / "disk.qcow2";
  std::unique_ptr<BackgroundProcess> machine_;
  int commands_ = 0;
};

TEST_F(NbdkitRunningMachineTest, ASnapshotIsServedWhileTheMachineWritesAndTakesOthers) {
  monitor("savevm one");
  const NbdServer server({disk_, "snapshot=one"});
  EXPECT_TRUE(copied(server) == at_start());
  for (int round = 0; round < 4; ++round) {
    machine_io(fmt::format("write -P {} {}M 20M", 40 + round, 4 * round));
    machine_io("discard 0 2M");
    monitor(fmt::format("savevm other-{}", round));
    EXPECT_TRUE(copied(server) == at_start()) << round;
    machine_io(fmt::format("write -P {} 0 30M", 50 + round));
    if (round % 2 == 1) monitor(fmt::format("delvm other-{}", round - 1));
    EXPECT_TRUE(copied(server) == at_start()) << round;
  }
  monitor("loadvm one");
  machine_io("write -P 99 0 16M");
  EXPECT_TRUE(copied(server) == at_start());
}

TEST_F(NbdkitRunningMachineTest, TheMachineIsNotKeptFromItsDisk) {
  monitor("savevm one");
  const NbdServer server({disk_, "snapshot=one"});
  EXPECT_TRUE(copied(server) == at_start());
  machine_->write(R"({"execute": "quit"})");
  EXPECT_EQ(machine_->close_and_wait(), 0);
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", disk_});
  EXPECT_TRUE(copied(server) == at_start());
}

TEST_F(NbdkitRunningMachineTest, ADeletedSnapshotGivesErrors) {
  monitor("savevm one");
  NbdServer server({disk_, "snapshot=one"});
  EXPECT_TRUE(copied(server) == at_start());
  monitor("delvm one");
  machine_io("write -P 5 0 64M");
  for (const char* place : {"read 0 64k", "read 60M 64k"}) {
    const auto result = run({"qemu-io", "-r", "-f", "raw", "-c", place, server.uri()});
    EXPECT_THAT(result.out + result.err, HasSubstr("read failed: Input/output error")) << place;
  }
  // Another one of that name is another one.
  monitor("savevm one");
  const auto result = run({"qemu-io", "-r", "-f", "raw", "-c", "read 0 64k", server.uri()});
  EXPECT_THAT(result.out + result.err, HasSubstr("read failed"));
  server.stop();
  EXPECT_THAT(server.process().output(), HasSubstr("snapshot 'one' (id 1) has been deleted"));
  EXPECT_TRUE(copied(NbdServer({disk_, "snapshot=one"})) == std::string(64 << 20, 5));
}

// What is read while the snapshot goes away is either what it held, or an error.
TEST_F(NbdkitRunningMachineTest, NoReadEverShowsAnythingElse) {
  for (int round = 0; round < 3; ++round) {
    machine_io("write -P 1 0 64M");
    monitor("savevm one");
    const auto point = image::Point::open({.path = disk_, .snapshot = "one"}, Access::kReadOnly);
    ASSERT_TRUE(point) << point.error().message;
    ASSERT_TRUE((*point)->is_watched());
    std::atomic<uint64_t> good = 0;
    std::atomic<uint64_t> wrong = 0;
    std::vector<std::thread> readers;
    for (uint64_t t = 0; t < 3; ++t) {
      readers.emplace_back([&, t] {
        const std::vector<std::byte> right(65536, std::byte{1});
        std::vector<std::byte> data(65536);
        for (uint64_t at = t * 7919;; ++at) {
          const auto read = (*point)->disk().read_at((at * 1000003 % 1023) * 65536, data);
          if (!read) {
            EXPECT_EQ(read.error().sys_errno, ESTALE) << read.error().message;
            return;
          }
          if (data != right) ++wrong;
          ++good;
        }
      });
    }
    while (good < 100) std::this_thread::yield();
    machine_io("write -P 2 0 32M");
    monitor("delvm one");
    machine_io("write -P 3 0 64M");  // into the clusters that have become free
    for (std::thread& reader : readers) reader.join();
    EXPECT_EQ(wrong, 0u) << "of " << good;
  }
}

}  // namespace
}  // namespace varve
