// QEMU's image lock protocol (QEMU manual, "Disk image file locking"; docs/locking.md): open file description locks on
// single bytes of the image file. A shared (read) lock on byte 100+p says "I use permission p", one on byte 200+p says
// "I do not share permission p with others". A permission may be taken only if nobody else holds its 200+p byte, and
// may be denied to others only if nobody else holds its 100+p byte.
//
// Where the file system knows no such locks, none are taken and nothing is refused, as in QEMU (locking=auto).
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

// The presets are what QEMU 7.2 was seen to hold (tests/interop/image_lock_test.cc watches it).
struct LockRequest {
  unsigned used = 0;      // permissions taken
  unsigned unshared = 0;  // permissions that nobody else may take

  // A format driver's file (qcow2) for reading: nobody may write or resize while we believe its metadata.
  static LockRequest format_reader() { return {kLockConsistentRead, kLockWrite | kLockResize}; }
  // The same for writing: qemu-img snapshot -c, -a, -d; a running machine's qcow2 disk; qemu-nbd.
  static LockRequest format_writer() {
    return {kLockConsistentRead | kLockWrite | kLockResize, kLockWrite | kLockResize};
  }
  // Metadata only, the guest's data never read (qemu-img info): still nobody may write.
  static LockRequest inspector() { return {0, kLockWrite | kLockResize}; }
  // A raw image that is copied (qemu-img convert). qemu-img compare and qemu-io -r would let others write meanwhile;
  // a copy of a disk that changes is of no use.
  static LockRequest raw_reader() { return {kLockConsistentRead, kLockWrite | kLockResize}; }
  // A raw image that is written, for instance the target of a conversion: one writer, and nobody copies it meanwhile.
  static LockRequest raw_writer() { return {kLockConsistentRead | kLockWrite | kLockResize, kLockWrite | kLockResize}; }
  // A backing file that shows through below an overlay: others may have it as their backing file, too.
  static LockRequest backing_reader() { return {kLockConsistentRead, kLockWrite | kLockResize}; }
  // Force-share (-U): no lock. The caller says to the user that it does so.
  static LockRequest none() { return {}; }
  bool operator==(const LockRequest&) const = default;
};

// The locks held through one open file description. Released when it is destroyed (or the file is closed).
class ImageLock {
 public:
  // `fd` stays the caller's, is open for reading, and must outlive the lock. kInUse when refused: the message names
  // `path` and what the other side holds, the notes name the processes and say what to do.
  static Result<ImageLock> acquire(int fd, const std::string& path, LockRequest request);
  ImageLock(ImageLock&& other) noexcept;
  ImageLock& operator=(ImageLock&& other) noexcept;
  ~ImageLock();
  // Moves to `request`; on failure the previous locks are held as before.
  Result<void> change(LockRequest request);
  LockRequest held() const { return held_; }

 private:
  ImageLock(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  void release();

  int fd_ = -1;
  std::string path_;
  LockRequest held_;
};

}  // namespace varve
