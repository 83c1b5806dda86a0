// A real file system of its own: a file with mkfs on it, mounted through a loop device, unmounted with the test. Needs
// root. What it is for: full disks, quotas, file systems that go away in the middle of a command.
#pragma once

#include <cstdint>
#include <string>

#include "support/temp_dir.h"

namespace varve::test {

class LoopFileSystem {
 public:
  // `mkfs`: the command without the file, words separated by blanks ("mkfs.ext4 -q -m 0"); `options` are mount's.
  // Where it can't be mounted, mounted() is false: REQUIRES_MOUNTED.
  LoopFileSystem(const std::string& mkfs, uint64_t bytes, std::string options = {});
  LoopFileSystem(const LoopFileSystem&) = delete;
  LoopFileSystem& operator=(const LoopFileSystem&) = delete;
  ~LoopFileSystem();

  bool mounted() const { return mounted_; }
  // What mount said when it could not.
  const std::string& why_not() const { return why_not_; }
  std::string path() const { return directory_ / "mnt"; }
  std::string operator/(const std::string& name) const { return path() + "/" + name; }
  // The loop device, "/dev/loop3".
  std::string device() const;

  void unmount();
  void mount();
  // Keeps the file system as it is now, for restore(); both while it is unmounted.
  void keep() const;
  void restore() const;

  // Everything that is not in the file system itself is lost from now on, as when its disk is pulled out: what was not
  // flushed, and every later access (EIO). ext4 and XFS know how.
  void pull_out() const;
  // The file system meets an error, and goes read-only (ext4, mounted with errors=remount-ro).
  void make_read_only_by_error() const;

  // Leaves this much space, in bytes; and gives it back.
  void fill_up(uint64_t leave) const;
  void free_up() const;

 private:
  TempDir directory_;
  std::string options_;
  bool mounted_ = false;
  std::string why_not_;
};

// Skips the running test where the machine mounts no loop devices, as some containers don't, or knows no such file
// system; scripts/test counts that as a failure in continuous integration.
#define REQUIRES_MOUNTED(disk)                                                    \
  do {                                                                            \
    if (!(disk).mounted()) GTEST_SKIP() << "needs a mount: " << (disk).why_not(); \
  } while (false)

}  // namespace varve::test
