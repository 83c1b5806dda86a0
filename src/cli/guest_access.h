// What the verbs share that look at files inside of a snapshot's disks (ls, cat, cp, mount, diff --files): the options
// that say where the files are, and libguestfs over a server of our own.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/point_server.h"
#include "guestfs/guest_files.h"

namespace varve::cli {

// "NAME:/path", or "NAME" for "/": a snapshot's name has no slash in it. No slash is left at the path's end.
struct PlaceInside {
  std::string snapshot;
  std::string path;
};
PlaceInside parse_place(const std::string& text);

struct GuestRequest {
  std::string domain;
  std::string snapshot;
  std::vector<std::string> disks;  // empty: all
  std::string partition;           // "vda1", "vg/root"; empty: see open_files()
  bool inspect = false;
};
// --disk, --partition and --inspect.
void add_guest_options(CLI::App& verb, GuestRequest& request);

// The appliance with the disks in it, and the server that gives them to it.
struct Guest {
  PointServer server;
  std::unique_ptr<guestfs::GuestFiles> files;
};
// An InterruptWatch has to live.
Result<Guest> open_guest(const Context& context, PointServer server);
// The disks of the request's snapshot.
Result<std::vector<DiskPoint>> points_to_look_into(Host& host, const GuestRequest& request);
Result<Guest> open_guest(Context& context, const GuestRequest& request, const std::string& command);

// Mounts what the request names: one file system, or the one operating system on the disks as it mounts itself, or the
// one file system there is. kInvalidArgument where it is not clear which is meant, with what there is. Says to standard
// error what of a system can't be read.
Result<void> mount_files(Context& context, const GuestRequest& request, guestfs::GuestFiles& files);

// "vda1 (ext4), vda2 (swap)".
std::string list_of(const std::vector<guestfs::GuestFileSystem>& file_systems);

Error stopped();  // kInterrupted
// kInterrupted where the user asked to stop: what failed then failed because of that.
Error unless_interrupted(Error error);

}  // namespace varve::cli
