// QEMU's image lock protocol (QEMU manual, "Disk image file locking"; docs/locking.md): open file description locks on
// single bytes of the image file. A shared (read) lock on byte 100+p says "I use permission p", one on byte 200+p says
// "I do not share permission p with others". A permission may be taken only if nobody else holds its 200+p byte, and
// may be denied to others only if nobody else holds its 100+p byte.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace varve {

// QEMU's permissions; the values are bits (1 << p).
enum LockPermission : unsigned {
  kLockConsistentRead = 1u << 0,
  kLockWrite = 1u << 1,
  kLockWriteUnchanged = 1u << 2,
  kLockResize = 1u << 3,
};

struct LockRequest {
  unsigned used = 0;      // permissions taken
  unsigned unshared = 0;  // permissions that nobody else may take

  // What QEMU takes for a format driver's file (qcow2): nobody else may write or resize while we read metadata.
  static LockRequest format_reader() { return {kLockConsistentRead, kLockWrite | kLockResize}; }
  static LockRequest format_writer() {
    return {kLockConsistentRead | kLockWrite | kLockResize, kLockWrite | kLockResize};
  }
  // What qemu-img takes for a raw image it reads.
  static LockRequest raw_reader() { return {kLockConsistentRead, 0}; }
  // Force-share (-U): no lock. The caller says to the user that it does so.
  static LockRequest none() { return {}; }
  bool operator==(const LockRequest&) const = default;
};

// The locks held through one open file description. Released when it is destroyed (or the file is closed).
class ImageLock {
 public:
  // `fd` stays the caller's and must outlive the lock. kInUse when refused.
  static Result<ImageLock> acquire(int fd, const std::string& path, LockRequest request);
  ImageLock(ImageLock&&) noexcept;
  ImageLock& operator=(ImageLock&&) noexcept;
  ~ImageLock();
  // Moves to `request`; on failure the previous locks are held as before.
  Result<void> change(LockRequest request);

 private:
  ImageLock(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
  LockRequest held_;
};

}  // namespace varve
