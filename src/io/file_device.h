// A file or block special file as a BlockDevice, with QEMU's image locks held for as long as it is open.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "base/unique_fd.h"
#include "io/block_device.h"
#include "io/image_lock.h"
#include "io/rehearsal_device.h"

namespace varve {

enum class Access : uint8_t {
  kReadOnly,
  kReadWrite,
  // Opened and locked as for writing, so that what forbids it is found; but nothing is written: what the file would
  // become is seen through this object alone (io/rehearsal_device.h).
  kRehearse,
};

class FileDevice final : public BlockDevice {
 public:
  // Opens `path` (O_CLOEXEC) and takes `lock` (docs/locking.md); kInUse when somebody's lock forbids it, with the
  // holder in the notes where /proc knows it. LockRequest::none() is for force-share readers only. Anything but a
  // regular file or a block special file is kInvalidArgument.
  static Result<std::unique_ptr<FileDevice>> open(const std::string& path, Access access, LockRequest lock);
  // Creates (or truncates, once the lock is held) a regular file, for reading and writing, with mode 0644 & ~umask as
  // qemu-img does, or `mode` where given. An existing block special file is opened and left as it is.
  static Result<std::unique_ptr<FileDevice>> create(const std::string& path, LockRequest lock, unsigned mode = 0644);

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override;  // fdatasync
  void start_write_back(uint64_t offset, uint64_t length) override;
  // From now on flush() does nothing: the caller takes it that a loss of power loses the file (QEMU's cache=unsafe).
  void ignore_flushes() { ignores_flushes_ = true; }
  // From now on whole blocks of what is read and written go past the page cache (QEMU's cache=none), as far as the file
  // system lets them; the edges of a request go through it. The same page never goes both ways at once unless two
  // requests touch the same bytes of it.
  void bypass_page_cache();
  bool bypasses_page_cache() const { return static_cast<bool>(direct_fd_); }
  // Like flush, and the inode's times too (fsync): the journal recognises an image that was touched by its mtime.
  Result<void> sync_all();
  Result<uint64_t> size() override;
  Result<void> resize(uint64_t new_size) override;
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;  // SEEK_DATA, SEEK_HOLE
  DeviceCapabilities capabilities() const override;
  const std::string& name() const override { return path_; }

  int fd() const { return fd_.get(); }
  bool is_block_device() const { return is_block_device_; }
  // Bytes that the file occupies on its file system (st_blocks), as `qemu-img info` prints "disk size".
  Result<uint64_t> allocated_bytes() const;
  // Of a file that is open with Access::kRehearse: what would have become of it so far.
  // A device on which writes to this one can be tried: it shows them, and this file stays as it is.
  Result<std::unique_ptr<RehearsalDevice>> rehearse() const;
  bool is_rehearsal() const { return rehearsal_ != nullptr; }
  RehearsedChanges rehearsed() const { return rehearsal_->changes(); }
  // Changes the held lock, e.g. from a reader's to a writer's. On failure the old one is kept.
  Result<void> relock(LockRequest lock);

 private:
  FileDevice(UniqueFd fd, std::string path, Access access, bool is_block_device);
  static Result<std::unique_ptr<FileDevice>> open_with(const std::string& path, Access access, int flags, unsigned mode,
                                                       LockRequest lock);

  Result<void> check_writable(const char* doing, uint64_t offset, uint64_t length) const;
  Result<void> sync_with(int (*sync)(int), const char* call);
  Result<void> clear_range(uint64_t offset, uint64_t length, std::span<const int> fallocate_modes);
  Result<void> write_zero_bytes(uint64_t offset, uint64_t length);
  // The next step of a request: how much of it, and whether past the page cache.
  struct Step {
    size_t length = 0;
    bool direct = false;
  };
  Step next_step(uint64_t position, size_t length) const;
  ssize_t read_step(uint64_t position, std::span<std::byte> buffer);
  ssize_t write_step(uint64_t position, std::span<const std::byte> data);
  void allocate_hole(uint64_t offset, uint64_t length) const;
  Error failed(int err, const char* doing, uint64_t length, uint64_t offset) const;

  UniqueFd fd_;
  UniqueFd direct_fd_;                        // the same file with O_DIRECT
  std::atomic<bool> direct_is_taken_ = true;  // until the file system refuses a request
  std::string path_;
  Access access_;
  bool is_block_device_;
  bool allocates_holes_ = false;  // before it writes much into them
  bool ignores_flushes_ = false;
  uint32_t zero_alignment_ = 1;                 // block special files clear whole sectors only
  std::unique_ptr<RehearsalDevice> rehearsal_;  // Access::kRehearse only
  std::atomic<bool> flush_failed_ = false;
  std::atomic<bool> can_punch_holes_ = true;  // until the file system says no
  std::optional<ImageLock> lock_;             // after fd_: is released first
};

}  // namespace varve
