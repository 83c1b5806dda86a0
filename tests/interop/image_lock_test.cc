// QEMU's programs and ours keep each other out of an image, in both directions.
#include "io/image_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "io/file_device.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using test::BackgroundProcess;

class ImageLockInterop : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", qcow2_, "16M"});
    test::run_ok({"qemu-img", "create", "-q", "-f", "raw", raw_, "16M"});
  }

  // qemu-io holds the image until its standard input ends.
  static std::unique_ptr<BackgroundProcess> hold(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "qemu-io");
    auto process = std::make_unique<BackgroundProcess>(arguments);
    process->write("length\n");
    EXPECT_TRUE(process->wait_for("16 MiB")) << process->output();
    return process;
  }

  // The permissions that others hold on the image.
  static LockRequest held(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    LockRequest request;
    for (unsigned p = 0; p < 32; ++p) {
      for (const auto& [base, bits] : {std::pair{100, &request.used}, std::pair{200, &request.unshared}}) {
        struct flock fl = {};
        fl.l_type = F_WRLCK;
        fl.l_whence = SEEK_SET;
        fl.l_start = base + static_cast<int>(p);
        fl.l_len = 1;
        EXPECT_EQ(::fcntl(fd.get(), F_OFD_GETLK, &fl), 0);
        if (fl.l_type != F_UNLCK) *bits |= 1u << p;
      }
    }
    return request;
  }

  test::TempDir dir_;
  std::string qcow2_ = dir_ / "disk.qcow2";
  std::string raw_ = dir_ / "disk.raw";
};

TEST_F(ImageLockInterop, ThePresetsAreWhatQemuHolds) {
  {
    const auto peer = hold({"-f", "qcow2", qcow2_});
    EXPECT_EQ(held(qcow2_), LockRequest::format_writer());
  }
  {
    const auto peer = hold({"-r", "-f", "qcow2", qcow2_});
    EXPECT_EQ(held(qcow2_), LockRequest::format_reader());
  }
  const std::string overlay = dir_ / "overlay.qcow2";
  test::run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-b", qcow2_, "-F", "qcow2", overlay});
  const auto peer = hold({"-f", "qcow2", overlay});
  EXPECT_EQ(held(qcow2_), LockRequest::backing_reader());
}

TEST_F(ImageLockInterop, AnImageThatQemuWritesIsNotOpened) {
  const auto peer = hold({"-f", "qcow2", qcow2_});
  const LockRequest requests[] = {LockRequest::format_reader(), LockRequest::format_writer(), LockRequest::inspector()};
  for (const LockRequest request : requests) {
    const auto ours = FileDevice::open(qcow2_, Access::kReadOnly, request);
    ASSERT_FALSE(ours);
    EXPECT_EQ(ours.error().kind, ErrorKind::kInUse);
    ASSERT_EQ(ours.error().notes.size(), 2u);
    EXPECT_EQ(ours.error().notes[0], "it is held by qemu-io (pid " + std::to_string(peer->pid()) + ")");
  }
  const auto ours = FileDevice::open(qcow2_, Access::kReadOnly, LockRequest::format_reader());
  ASSERT_FALSE(ours);
  EXPECT_EQ(ours.error().message, "'" + qcow2_ + "' is in use by another process (it holds the write lock)");
  EXPECT_TRUE(FileDevice::open(qcow2_, Access::kReadOnly, LockRequest::none()));
}

TEST_F(ImageLockInterop, AnImageThatQemuReadsIsReadTogetherButNotWritten) {
  const auto peer = hold({"-r", "-f", "qcow2", qcow2_});
  EXPECT_TRUE(FileDevice::open(qcow2_, Access::kReadOnly, LockRequest::format_reader()));
  const auto writer = FileDevice::open(qcow2_, Access::kReadWrite, LockRequest::format_writer());
  ASSERT_FALSE(writer);
  EXPECT_EQ(writer.error().message, "'" + qcow2_ + "' is in use by another process (it does not share the write lock)");
  EXPECT_EQ(held(qcow2_), LockRequest::format_reader());
}

TEST_F(ImageLockInterop, ARawDiskThatQemuWritesIsNotCopied) {
  const auto peer = hold({"-f", "raw", raw_});
  const auto ours = FileDevice::open(raw_, Access::kReadOnly, LockRequest::raw_reader());
  ASSERT_FALSE(ours);
  EXPECT_EQ(ours.error().kind, ErrorKind::kInUse);
}

// A whole machine, halted before its first instruction.
TEST_F(ImageLockInterop, TheDiskOfAMachineIsNotOpened) {
  REQUIRES_PROGRAM("qemu-system-x86_64");
  for (const auto& [format, path] : {std::pair{"qcow2", qcow2_}, std::pair{"raw", raw_}}) {
    SCOPED_TRACE(format);
    BackgroundProcess machine({"qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S",
                               "-monitor", "stdio", "-drive",
                               std::string("if=virtio,format=") + format + ",file=" + path});
    machine.write("info status\n");
    ASSERT_TRUE(machine.wait_for("paused")) << machine.output();
    const auto reader = FileDevice::open(path, Access::kReadOnly, LockRequest::raw_reader());
    ASSERT_FALSE(reader);
    EXPECT_EQ(reader.error().message, "'" + path + "' is in use by another process (it holds the write lock)");
    ASSERT_EQ(reader.error().notes.size(), 2u);
    EXPECT_EQ(reader.error().notes[0].rfind("it is held by qemu-system-x86", 0), 0u) << reader.error().notes[0];
    EXPECT_FALSE(FileDevice::open(path, Access::kReadWrite, LockRequest::raw_writer()));
  }
}

TEST_F(ImageLockInterop, NoMachineStartsOnADiskThatWeWrite) {
  REQUIRES_PROGRAM("qemu-system-x86_64");
  for (const auto& [format, path] : {std::pair{"qcow2", qcow2_}, std::pair{"raw", raw_}}) {
    SCOPED_TRACE(format);
    const auto ours = FileDevice::open(path, Access::kReadWrite, LockRequest::raw_writer());
    ASSERT_TRUE(ours);
    const auto machine = test::run({"qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S",
                                    "-drive", std::string("if=virtio,format=") + format + ",file=" + path});
    EXPECT_EQ(machine.exit_code, 1);
    EXPECT_NE(machine.err.find("Failed to get \"write\" lock"), std::string::npos) << machine.err;
  }
}

TEST_F(ImageLockInterop, TheImageIsFreeWhenQemuEnds) {
  const auto peer = hold({"-f", "qcow2", qcow2_});
  EXPECT_FALSE(FileDevice::open(qcow2_, Access::kReadWrite, LockRequest::format_writer()));
  EXPECT_EQ(peer->close_and_wait(), 0);
  EXPECT_TRUE(FileDevice::open(qcow2_, Access::kReadWrite, LockRequest::format_writer()));
}

TEST_F(ImageLockInterop, QemuDoesNotOpenWhatWeWrite) {
  {
    const auto ours = FileDevice::open(qcow2_, Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(ours);
    const auto snapshot = test::run({"qemu-img", "snapshot", "-c", "one", qcow2_});
    EXPECT_NE(snapshot.exit_code, 0);
    EXPECT_NE(snapshot.err.find("Failed to get \"write\" lock"), std::string::npos) << snapshot.err;
    const auto check = test::run({"qemu-img", "check", qcow2_});
    EXPECT_NE(check.exit_code, 0);
    EXPECT_NE(check.err.find("Failed to get shared \"write\" lock"), std::string::npos) << check.err;
    EXPECT_NE(test::run({"qemu-img", "info", qcow2_}).exit_code, 0);
    EXPECT_NE(test::run({"qemu-io", "-c", "write 0 512", qcow2_}).exit_code, 0);
    EXPECT_EQ(test::run({"qemu-img", "info", "-U", qcow2_}).exit_code, 0);
  }
  test::run_ok({"qemu-img", "snapshot", "-c", "one", qcow2_});
}

TEST_F(ImageLockInterop, QemuReadsButDoesNotWriteWhatWeRead) {
  const auto ours = FileDevice::open(qcow2_, Access::kReadOnly, LockRequest::format_reader());
  ASSERT_TRUE(ours);
  test::run_ok({"qemu-img", "check", "-q", qcow2_});
  test::run_ok({"qemu-img", "snapshot", "-l", qcow2_});
  const auto snapshot = test::run({"qemu-img", "snapshot", "-c", "one", qcow2_});
  EXPECT_NE(snapshot.exit_code, 0);
  EXPECT_NE(snapshot.err.find("Failed to get \"write\" lock"), std::string::npos) << snapshot.err;
}

}  // namespace
}  // namespace varve
