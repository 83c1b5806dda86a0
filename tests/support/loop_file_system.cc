#include "support/loop_file_system.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/unique_fd.h"
#include "support/process.h"

namespace varve::test {

namespace {

// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, which are the same, with "do not flush the journal"; no header of the
// kernel's interface has them.
constexpr unsigned long kShutdown = _IOR('X', 125, uint32_t);
constexpr uint32_t kWithoutFlush = 2;

}  // namespace

LoopFileSystem::LoopFileSystem(const std::string& mkfs, uint64_t bytes, std::string options)
    : options_("loop" + (options.empty() ? "" : "," + std::move(options))) {
  run_ok({"truncate", "-s", std::to_string(bytes), directory_ / "disk.img"});
  std::istringstream words(mkfs);
  std::vector<std::string> command(std::istream_iterator<std::string>(words), {});
  command.push_back(directory_ / "disk.img");
  run_ok(command);
  std::filesystem::create_directory(path());
  const ProcessResult result = run({"mount", "-o", options_, directory_ / "disk.img", path()});
  mounted_ = result.exit_code == 0;
  why_not_ = result.err;
}

LoopFileSystem::~LoopFileSystem() {
  if (mounted_) run({"umount", path()});
}

std::string LoopFileSystem::device() const {
  const std::string out = run_ok({"findmnt", "-n", "-o", "SOURCE", path()});
  return out.substr(0, out.find('\n'));
}

void LoopFileSystem::unmount() {
  if (mounted_) run_ok({"umount", path()});
  mounted_ = false;
}

void LoopFileSystem::mount() {
  run_ok({"mount", "-o", options_, directory_ / "disk.img", path()});
  mounted_ = true;
}

void LoopFileSystem::keep() const {
  run_ok({"cp", "--reflink=auto", "--sparse=always", directory_ / "disk.img", directory_ / "kept.img"});
}

void LoopFileSystem::restore() const {
  run_ok({"cp", "--reflink=auto", "--sparse=always", directory_ / "kept.img", directory_ / "disk.img"});
}

void LoopFileSystem::pull_out() const {
  const UniqueFd fd(::open(path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ioctl(fd.get(), kShutdown, &kWithoutFlush), 0);
}

void LoopFileSystem::make_read_only_by_error() const {
  const std::string name = device().substr(std::string("/dev/").size());
  std::ofstream trigger("/sys/fs/ext4/" + name + "/trigger_fs_error");
  trigger << "by a test" << std::flush;
  ASSERT_TRUE(trigger);
}

void LoopFileSystem::fill_up(uint64_t leave) const {
  // The bulk at once, and the rest block by block until the file system says no.
  constexpr uint64_t kRest = 256 * 1024;
  const std::string filler = *this / "filler";
  const uint64_t available = std::filesystem::space(path()).available;
  ASSERT_GT(available, leave + kRest);
  run_ok({"fallocate", "-l", std::to_string(available - leave - kRest), filler});
  run({"dd", "if=/dev/zero", "of=" + filler, "bs=1024", "count=256", "oflag=append", "conv=notrunc,fsync"});
}

void LoopFileSystem::free_up() const {
  std::filesystem::remove(*this / "filler");
}

}  // namespace varve::test
