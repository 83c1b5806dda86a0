// The files inside of a guest's disks, read by libguestfs: it starts a small virtual machine of its own in which a
// kernel reads the guest's partitions, volumes and file systems. Whatever a hostile file system does to that kernel, it
// does in there and not to this host (docs/threat-model.md). It takes some seconds, more where KVM does not work.
//
// Disks come over NBD from a server on a private socket, for reading. What a kernel has to write when it mounts (the
// journal of a machine that was running) goes to an overlay that libguestfs throws away.
//
// One thread at a time. The appliance ends with the object.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "guestfs/guest_file.h"

namespace varve::guestfs {

struct GuestDisk {
  std::string target;       // "vda": what messages call it
  std::string export_name;  // of the NBD server
  std::string socket;       // where that listens
};

struct GuestFileSystem {
  std::string name;       // for people: "vda1", "vg/root" (device_names.h)
  std::string type;       // "ext4", "xfs", "swap", "crypto_LUKS", "unknown"
  std::string mountable;  // what libguestfs calls it
  // Whether there can be files in it.
  bool has_files() const {
    return type != "swap" && type != "unknown" && type != "crypto_LUKS" && type != "LVM2_member";
  }
};

// An operating system that was found on the disks.
struct GuestSystem {
  std::string name;                                         // "Debian GNU/Linux 12 (bookworm)"
  std::vector<std::pair<std::string, std::string>> mounts;  // where it mounts what; the first is "/"
};

class GuestFiles {
 public:
  // `backend` is libguestfs's (guestfs(3), "BACKEND"); empty: its own choice. kUnsupported where there is no
  // libguestfs, or its appliance does not start.
  static Result<std::unique_ptr<GuestFiles>> start(const std::vector<GuestDisk>& disks, const std::string& backend);
  GuestFiles(const GuestFiles&) = delete;
  GuestFiles& operator=(const GuestFiles&) = delete;
  ~GuestFiles();

  // Of all partitions, volumes and whole disks, with those that can't be mounted.
  Result<std::vector<GuestFileSystem>> file_systems();
  Result<uint64_t> size_bytes(const GuestFileSystem& file_system);
  Result<std::string> label(const GuestFileSystem& file_system);
  Result<std::vector<GuestSystem>> systems();

  // For reading, at "/", in the place of what was mounted before. kIo where it can't be read.
  Result<void> mount(const GuestFileSystem& file_system);
  // The same with all that a system mounts; what can't be mounted but its "/" is returned as notes.
  Result<std::vector<std::string>> mount(const GuestSystem& system);

  // Of what is mounted. Links on the way are followed as the guest would; kNotFound.
  Result<GuestFile> look_up(const std::string& path);  // the last one, too
  Result<GuestFile> look_at(const std::string& path);  // but the last one
  Result<std::vector<GuestFile>> list(const std::string& directory);
  // Writes a file's contents to `fd`, which may be a pipe.
  Result<void> read(const std::string& path, int fd);
  // Writes everything in a directory to `fd` as a tar archive whose names begin with "./".
  Result<void> read_tree(const std::string& directory, int fd);

  // Ends the read() or read_tree() that goes on, with an error. From another thread.
  void cancel();

  // Shows what is mounted at an empty directory of this host through FUSE, to this user, until somebody unmounts it
  // there. `ready` is called when it is there.
  Result<void> show_at(const std::string& directory, const std::function<void()>& ready);

 private:
  class Handle;
  explicit GuestFiles(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> handle_;
};

}  // namespace varve::guestfs
