#include "io/file_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "base/checked.h"

namespace varve {
namespace {

constexpr uint64_t kMaxOffset = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
constexpr size_t kZeroBufferSize = size_t{256} << 10;
constexpr size_t kAllocatedAtOnce = size_t{256} << 10;

// Of O_DIRECT: a multiple of what any disk asks for, and of the pages of the cache.
constexpr size_t kDirectBlock = 4096;
constexpr size_t kDirectBuffer = size_t{2} << 20;

// A thread's own, to copy through: nobody else's memory lies as O_DIRECT wants it.
std::span<std::byte> aligned_buffer() {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local const std::unique_ptr<void, Free> memory(std::aligned_alloc(kDirectBlock, kDirectBuffer));
  if (memory == nullptr) throw std::bad_alloc();
  return {static_cast<std::byte*>(memory.get()), kDirectBuffer};
}

bool means_unsupported(int err) {
  return err == EOPNOTSUPP || err == ENOSYS || err == ENOTTY || err == ENODEV;
}

Error invalid(std::string message, const std::string& path, std::optional<uint64_t> offset) {
  Error e = make_error(ErrorKind::kInvalidArgument, std::move(message));
  e.path = path;
  e.offset = offset;
  return e;
}

int call_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
  int r;
  do {
    r = ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
  } while (r != 0 && errno == EINTR);
  return r == 0 ? 0 : errno;
}

}  // namespace

Result<std::unique_ptr<FileDevice>> FileDevice::open(const std::string& path, Access access, LockRequest lock) {
  // O_NONBLOCK: a named pipe in an image's place is refused below instead of waited for.
  return open_with(path, access, O_NONBLOCK, 0, lock);
}

Result<std::unique_ptr<FileDevice>> FileDevice::create(const std::string& path, LockRequest lock, unsigned mode) {
  auto device = TRY(open_with(path, Access::kReadWrite, O_CREAT | O_NONBLOCK, mode, lock));
  if (!device->is_block_device_ && ::ftruncate(device->fd(), 0) != 0) {
    return system_error(errno, fmt::format("cannot truncate '{}'", path), path);
  }
  return device;
}

Result<std::unique_ptr<FileDevice>> FileDevice::open_with(const std::string& path, Access access, int flags,
                                                          unsigned mode, LockRequest lock) {
  const char* doing = (flags & O_CREAT) != 0 ? "create" : "open";
  flags |= O_CLOEXEC | O_NOCTTY | (access == Access::kReadOnly ? O_RDONLY : O_RDWR);
  int fd;
  do {
    fd = ::open(path.c_str(), flags, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  UniqueFd owned(fd);

  struct stat st = {};
  if (::fstat(fd, &st) != 0) return system_error(errno, fmt::format("cannot {} '{}'", doing, path), path);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
    return invalid(fmt::format("cannot {} '{}': it is neither a file nor a block device", doing, path), path, {});
  }
  std::unique_ptr<FileDevice> device(new FileDevice(std::move(owned), path, access, S_ISBLK(st.st_mode)));
  device->lock_ = TRY(ImageLock::acquire(fd, path, lock));
  if (access == Access::kRehearse) device->rehearsal_ = TRY(device->rehearse());
  return device;
}

Result<std::unique_ptr<RehearsalDevice>> FileDevice::rehearse() const {
  UniqueFd same(::fcntl(fd(), F_DUPFD_CLOEXEC, 0));  // the same open file, and so the same locks
  if (!same) return system_error(errno, fmt::format("cannot open '{}' again", path_), path_);
  return RehearsalDevice::over(
      std::unique_ptr<BlockDevice>(new FileDevice(std::move(same), path_, Access::kReadOnly, is_block_device_)));
}

FileDevice::FileDevice(UniqueFd fd, std::string path, Access access, bool is_block_device)
    : fd_(std::move(fd)), path_(std::move(path)), access_(access), is_block_device_(is_block_device) {
  int sector = 0;
  if (is_block_device_) {
    zero_alignment_ = ::ioctl(fd_.get(), BLKSSZGET, &sector) == 0 && sector > 0 ? static_cast<uint32_t>(sector) : 512;
  }
  struct statfs fs = {};
  allocates_holes_ = !is_block_device_ && ::fstatfs(fd_.get(), &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC;
}

Error FileDevice::failed(int err, const char* doing, uint64_t length, uint64_t offset) const {
  Error e =
      system_error(err, fmt::format("cannot {} {} bytes at offset {} of '{}'", doing, length, offset, path_), path_);
  e.offset = offset;
  return e;
}

void FileDevice::bypass_page_cache() {
  if (rehearsal_) return;
  const int mode = access_ == Access::kReadOnly ? O_RDONLY : O_RDWR;
  direct_fd_ = UniqueFd(::open(fmt::format("/proc/self/fd/{}", fd_.get()).c_str(), mode | O_DIRECT | O_CLOEXEC));
  // What lies beside an edge is read past the cache: nothing of it is needed there.
  if (direct_fd_) (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);
}

FileDevice::Step FileDevice::next_step(uint64_t position, size_t length) const {
  if (!direct_fd_ || !direct_is_taken_) return {length, false};
  if (const size_t in_block = position % kDirectBlock; in_block != 0)
    return {std::min(length, kDirectBlock - in_block), false};
  const size_t whole = align_down(length, kDirectBlock);
  return whole == 0 ? Step{length, false} : Step{whole, true};
}

ssize_t FileDevice::read_step(uint64_t position, std::span<std::byte> buffer) {
  const Step step = next_step(position, buffer.size());
  const auto offset = static_cast<off_t>(position);
  if (!step.direct) return ::pread(fd_.get(), buffer.data(), step.length, offset);
  const std::span<std::byte> blocks = aligned_buffer().first(std::min(step.length, kDirectBuffer));
  const ssize_t n = ::pread(direct_fd_.get(), blocks.data(), blocks.size(), offset);
  if (n > 0) std::memcpy(buffer.data(), blocks.data(), static_cast<size_t>(n));
  if (n >= 0 || errno != EINVAL) return n;
  direct_is_taken_ = false;
  return ::pread(fd_.get(), buffer.data(), step.length, offset);
}

ssize_t FileDevice::write_step(uint64_t position, std::span<const std::byte> data) {
  const Step step = next_step(position, data.size());
  const auto offset = static_cast<off_t>(position);
  if (!step.direct) return ::pwrite(fd_.get(), data.data(), step.length, offset);
  const std::span<std::byte> blocks = aligned_buffer().first(std::min(step.length, kDirectBuffer));
  std::memcpy(blocks.data(), data.data(), blocks.size());
  const ssize_t n = ::pwrite(direct_fd_.get(), blocks.data(), blocks.size(), offset);
  if (n >= 0 || errno != EINVAL) return n;
  direct_is_taken_ = false;
  return ::pwrite(fd_.get(), data.data(), step.length, offset);
}

Result<void> FileDevice::read_at(uint64_t offset, std::span<std::byte> buffer) {
  if (rehearsal_) return rehearsal_->read_at(offset, buffer);
  if (offset > kMaxOffset || buffer.size() > kMaxOffset - offset) return failed(EINVAL, "read", buffer.size(), offset);
  const uint64_t whole = buffer.size();
  uint64_t position = offset;
  while (!buffer.empty()) {
    const ssize_t n = read_step(position, buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      return failed(errno, "read", whole, offset);
    }
    if (n == 0) {
      return invalid(
          fmt::format("cannot read {} bytes at offset {} of '{}': the file ends at {}", whole, offset, path_, position),
          path_, offset);
    }
    buffer = buffer.subspan(static_cast<size_t>(n));
    position += static_cast<uint64_t>(n);
  }
  return {};
}

Result<void> FileDevice::check_writable(const char* doing, uint64_t offset, uint64_t length) const {
  if (access_ == Access::kReadOnly) {
    Error e =
        make_error(ErrorKind::kPermission, fmt::format("cannot {} '{}': it is open for reading only", doing, path_));
    e.path = path_;
    return e;
  }
  if (flush_failed_) {
    Error e = make_error(
        ErrorKind::kIo,
        fmt::format("cannot {} '{}': an earlier flush failed, so nobody knows what is on the disk", doing, path_));
    e.path = path_;
    e.offset = offset;
    e.notes.push_back("find the reason in the kernel's log, then check the image");
    return e;
  }
  if (offset > kMaxOffset || length > kMaxOffset - offset) return failed(EFBIG, doing, length, offset);
  return {};
}

Result<void> FileDevice::write_at(uint64_t offset, std::span<const std::byte> data) {
  TRY(check_writable("write", offset, data.size()));
  const uint64_t whole = data.size();
  if (is_block_device_ && offset + whole > TRY(size())) {
    return invalid(
        fmt::format("cannot write {} bytes at offset {} of '{}': the block device ends before", whole, offset, path_),
        path_, offset);
  }
  if (rehearsal_) return rehearsal_->write_at(offset, data);
  if (allocates_holes_ && whole >= kAllocatedAtOnce && !direct_fd_) allocate_hole(offset, whole);
  uint64_t position = offset;
  while (!data.empty()) {
    const ssize_t n = write_step(position, data);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(errno, "write", whole, offset);
    if (n == 0) return failed(ENOSPC, "write", whole, offset);
    data = data.subspan(static_cast<size_t>(n));
    position += static_cast<uint64_t>(n);
  }
  return {};
}

// ext4 reserves space for every block that is written into a hole, one after the other, which takes longer than the
// writing itself; of blocks that are allocated it knows where they are. XFS reserves in one go. Where it can't be done,
// the write says why. Nothing is changed that was there.
void FileDevice::allocate_hole(uint64_t offset, uint64_t length) const {
  const off_t data = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 ? errno != ENXIO : static_cast<uint64_t>(data) < offset + length) return;
  (void)call_fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, offset, length);
}

void FileDevice::start_write_back(uint64_t offset, uint64_t length) {
  if (rehearsal_ || offset > kMaxOffset || length > kMaxOffset - offset) return;
  // Waits for nothing, and so takes no error away from the flush.
  (void)::sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(length), SYNC_FILE_RANGE_WRITE);
}

Result<void> FileDevice::write_zero_bytes(uint64_t offset, uint64_t length) {
  static constexpr std::array<std::byte, kZeroBufferSize> kZeroes{};
  while (length > 0) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(length, kZeroBufferSize));
    TRY(write_at(offset, std::span(kZeroes).first(n)));
    offset += n;
    length -= n;
  }
  return {};
}

// Makes the range, clipped to the file, read as zeroes with the first of the modes that the file system knows, and by
// writing where it knows none. Block special files take whole sectors; what is left at the edges is written.
Result<void> FileDevice::clear_range(uint64_t offset, uint64_t length, std::span<const int> fallocate_modes) {
  const uint64_t end_of_file = TRY(size());
  if (offset >= end_of_file) return {};
  length = std::min(length, end_of_file - offset);
  const uint64_t first = std::min(align_up(offset, zero_alignment_), offset + length);
  const uint64_t last = std::max(align_down(offset + length, zero_alignment_), first);
  TRY(write_zero_bytes(offset, first - offset));
  TRY(write_zero_bytes(last, offset + length - last));
  if (first == last) return {};
  for (const int mode : fallocate_modes) {
    const bool punch = (mode & FALLOC_FL_PUNCH_HOLE) != 0;
    if (punch && !can_punch_holes_) continue;
    const int err = call_fallocate(fd_.get(), mode, first, last - first);
    if (err == 0) return {};
    if (!means_unsupported(err)) return failed(err, "clear", last - first, first);
    if (punch) can_punch_holes_ = false;
  }
  return write_zero_bytes(first, last - first);
}

Result<void> FileDevice::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  TRY(check_writable("write zeroes to", offset, length));
  if (rehearsal_) return rehearsal_->write_zeroes(offset, length, mode);
  static constexpr std::array kUnmap = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
  static constexpr std::array kKeep = {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
  if (mode == ZeroMode::kKeepAllocated) return clear_range(offset, length, kKeep);
  return clear_range(offset, length, kUnmap);
}

// A hole is the only discard that promises zeroes: BLKDISCARD leaves undefined bytes behind, whereas punching a hole in
// a block special file unmaps where the device then reads as zeroes (BLKZEROOUT's semantics), and writes elsewhere.
Result<void> FileDevice::discard(uint64_t offset, uint64_t length) {
  return write_zeroes(offset, length, ZeroMode::kMayUnmap);
}

Result<void> FileDevice::flush() {
  if (ignores_flushes_) return {};
  return sync_with(&::fdatasync, "flush");
}

Result<void> FileDevice::sync_all() {
  return sync_with(&::fsync, "sync");
}

// A failed flush is never tried again: the kernel has marked the pages clean, and a second one would "succeed".
Result<void> FileDevice::sync_with(int (*sync)(int), const char* call) {
  if (access_ == Access::kReadOnly) return {};
  TRY(check_writable(call, 0, 0));
  if (rehearsal_) return {};
  int r;
  do {
    r = sync(fd_.get());
  } while (r != 0 && errno == EINTR);
  if (r == 0) return {};
  flush_failed_ = true;
  return system_error(errno, fmt::format("cannot {} '{}'", call, path_), path_);
}

Result<uint64_t> FileDevice::size() {
  if (rehearsal_) return rehearsal_->size();
  if (is_block_device_) {
    uint64_t bytes = 0;
    if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes) == 0) return bytes;
  } else {
    struct stat st = {};
    if (::fstat(fd_.get(), &st) == 0) return static_cast<uint64_t>(st.st_size);
  }
  return system_error(errno, fmt::format("cannot tell the size of '{}'", path_), path_);
}

Result<void> FileDevice::resize(uint64_t new_size) {
  TRY(check_writable("resize", new_size, 0));
  if (is_block_device_) {
    const uint64_t present = TRY(size());
    if (present == new_size) return {};
    Error e = make_error(ErrorKind::kUnsupported,
                         fmt::format("cannot resize '{}' from {} to {} bytes: a block device has the size it has",
                                     path_, present, new_size));
    e.path = path_;
    return e;
  }
  if (rehearsal_) return rehearsal_->resize(new_size);
  int r;
  do {
    r = ::ftruncate(fd_.get(), static_cast<off_t>(new_size));
  } while (r != 0 && errno == EINTR);
  if (r != 0) return system_error(errno, fmt::format("cannot resize '{}' to {} bytes", path_, new_size), path_);
  return {};
}

Result<std::vector<Extent>> FileDevice::extents(uint64_t offset, uint64_t length) {
  if (rehearsal_) return rehearsal_->extents(offset, length);
  std::vector<Extent> result;
  const uint64_t end_of_file = TRY(size());
  if (offset >= end_of_file) return result;
  const uint64_t end = offset + std::min(length, end_of_file - offset);
  uint64_t position = offset;
  while (position < end) {
    const off_t data =
        is_block_device_ ? static_cast<off_t>(position) : ::lseek(fd_.get(), static_cast<off_t>(position), SEEK_DATA);
    if (data < 0 && errno == ENXIO) {  // no data from here to the end
      append_extent(result, {position, end - position, ExtentKind::kZero});
      break;
    }
    if (data < 0 && errno != EINVAL) return failed(errno, "map", end - position, position);
    const uint64_t data_start = data < 0 ? position : std::min(static_cast<uint64_t>(data), end);
    append_extent(result, {position, data_start - position, ExtentKind::kZero});
    if (data_start == end) break;

    const off_t hole =
        is_block_device_ || data < 0 ? -1 : ::lseek(fd_.get(), static_cast<off_t>(data_start), SEEK_HOLE);
    // Without a hole (or an answer: the file may have shrunk meanwhile) the rest is data.
    const uint64_t data_end = hole < 0 ? end : std::min(static_cast<uint64_t>(hole), end);
    append_extent(result, {data_start, data_end - data_start, ExtentKind::kData});
    position = data_end;
  }
  return result;
}

DeviceCapabilities FileDevice::capabilities() const {
  const bool writable = access_ != Access::kReadOnly;
  return {.can_write = writable,
          .can_grow = writable && !is_block_device_,
          .can_discard = writable && can_punch_holes_,
          .has_extents = !is_block_device_,
          .grows_by_zeroes = true};
}

Result<uint64_t> FileDevice::allocated_bytes() const {
  struct stat st = {};
  if (::fstat(fd_.get(), &st) != 0) return system_error(errno, fmt::format("cannot examine '{}'", path_), path_);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

Result<void> FileDevice::relock(LockRequest lock) {
  return lock_->change(lock);
}

}  // namespace varve
