// `varve snapshot mount`: the files of a snapshot, or the bytes of one of its disks, in a directory of this host until
// it is unmounted. Files come through libguestfs, a disk through nbdfuse.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/child_process.h"
#include "cli/guest_access.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "cli/plan_text.h"
#include "cli/snapshot_points.h"
#include "nbd/export_spec.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct MountRequest {
  GuestRequest guest;
  std::string directory;
  std::string disk;  // its bytes rather than files
};

Result<void> check_directory(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return make_error(ErrorKind::kNotFound, fmt::format("there is no directory '{}'", path))
        .with_note(fmt::format("`mkdir '{}'` makes it", path));
  }
  if (error) return system_error(error.value(), fmt::format("cannot look at '{}'", path), path);
  if (!std::filesystem::is_directory(status)) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no directory", path));
  }
  const bool is_empty = std::filesystem::is_empty(path, error);
  if (error) return system_error(error.value(), fmt::format("cannot look into '{}'", path), path);
  if (is_empty) return {};
  return make_error(ErrorKind::kRefused, fmt::format("'{}' is not empty", path))
      .with_note("what is in it could not be seen meanwhile; an empty directory is needed");
}

void say_ready(Context& context, const MountRequest& request, const std::string& what) {
  if (context.options.json) {
    print_json(context, {{"domain", request.guest.domain},
                         {"snapshot", request.guest.snapshot},
                         {"directory", request.directory},
                         {"disk", request.disk.empty() ? json() : json(request.disk)}});
  } else {
    context.output.print(fmt::format("{} of snapshot '{}' of '{}' {} at {}; Ctrl-C or `umount '{}'` ends it.\n", what,
                                     visible(request.guest.snapshot), visible(request.guest.domain),
                                     request.disk.empty() ? "are" : "is", visible(request.directory),
                                     visible(request.directory)));
  }
  context.output.finish();
}

// The number of the FUSE connection behind a mount: the file system is not asked, it does not answer yet.
std::optional<unsigned> fuse_connection(const std::string& directory) {
  struct statx status = {};
  if (::statx(AT_FDCWD, directory.c_str(), AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE, &status) != 0) return {};
  return status.stx_dev_minor;
}

// Whoever still looks into it gets errors, where fusectl is mounted (it is where systemd runs).
void unmount(const std::string& directory, std::optional<unsigned> connection) {
  if (::umount2(directory.c_str(), MNT_DETACH) != 0) {
    for (const char* name : {"fusermount3", "fusermount"}) {
      const std::string program = program_in_path(name);
      if (program.empty()) continue;
      auto child = ChildProcess::start(program, {name, "-u", "-z", directory});
      if (child && child->reap() == 0) break;
    }
  }
  if (!connection) return;
  const std::string path = fmt::format("/sys/fs/fuse/connections/{}/abort", *connection);
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (fd && ::write(fd.get(), "1", 1) != 1) return;  // it goes when the last file is closed
}

Result<ExitCode> mount_files_at(Context& context, const MountRequest& request) {
  const Guest guest = TRY(open_guest(context, request.guest, "snapshot mount"));
  TRY(mount_files(context, request.guest, *guest.files));
  std::atomic<bool> ended = false;
  std::thread unmounting;
  auto shown = guest.files->show_at(request.directory, [&] {
    const auto connection = fuse_connection(request.directory);
    unmounting = std::thread([&, connection] {
      while (!ended && !interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (ended) return;
      unmount(request.directory, connection);
      for (int i = 0; i < 20 && !ended; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (!ended) context.output.note("  files are still open: it ends when they are closed, or with another Ctrl-C\n");
    });
    say_ready(context, request, "The files");
  });
  ended = true;
  if (unmounting.joinable()) unmounting.join();
  if (!shown) return std::move(shown).error();
  return ExitCode::kDone;
}

// nbdfuse shows one export as one file.
Result<ExitCode> mount_disk_at(Context& context, const MountRequest& request, const std::vector<DiskPoint>& disks) {
  const std::string program = program_in_path("nbdfuse");
  if (program.empty()) {
    return make_error(ErrorKind::kUnsupported, "nbdfuse, which shows a disk as a file, is not installed")
        .with_note("`apt-get install libnbd-bin` (Debian, Ubuntu) or `dnf install nbdfuse` (Fedora) installs it");
  }
  const PointServer server = TRY(PointServer::start(request.guest.domain, disks));
  const std::string file = (std::filesystem::path(request.directory) / request.disk).string();
  ChildProcess child =
      TRY(ChildProcess::start(program, {"nbdfuse", "-r", file, nbd::unix_uri(request.disk, server.socket())}));
  struct stat there = {};
  while (::stat(file.c_str(), &there) != 0) {
    if (interrupted()) return ExitCode::kDone;
    if (!child.has_ended(20)) continue;
    return make_error(ErrorKind::kIo, "nbdfuse does not start; what it said is above")
        .with_note(
            "FUSE is needed: the device /dev/fuse, and fusermount3 (Debian's package fuse3) for users other than root");
  }
  say_ready(context, request, fmt::format("Disk {} ({})", visible(request.disk), visible(file)));
  while (!child.has_ended(200)) {
    if (!interrupted()) continue;
    child.end(std::chrono::seconds(10));
    return ExitCode::kDone;
  }
  const int code = child.reap();
  if (code == 0 || interrupted()) return ExitCode::kDone;
  return make_error(ErrorKind::kIo, fmt::format("nbdfuse ended with exit code {}; what it said is above", code));
}

Result<ExitCode> mount(Context& context, MountRequest request) {
  TRY(check_directory(request.directory));
  request.directory = std::filesystem::absolute(request.directory).string();
  std::vector<DiskPoint> disks;
  if (!request.disk.empty() || context.options.dry_run) {
    const auto host = TRY(open_host(context, "snapshot mount " + request.guest.domain));
    std::vector<std::string> targets;
    if (!request.disk.empty()) targets.push_back(request.disk);
    disks = TRY(points_of_snapshot(*host, request.guest.domain, request.guest.snapshot, targets));
  }
  if (context.options.dry_run) {
    Plan plan;
    plan.title = fmt::format("mount snapshot '{}' of '{}'", request.guest.snapshot, request.guest.domain);
    plan.steps.push_back(request.disk.empty() ? fmt::format("show its files at {}, until Ctrl-C", request.directory)
                                              : fmt::format("show disk {} as a file in {}, until Ctrl-C", request.disk,
                                                            request.directory));
    print_plan(context.output, context.options.json, plan);
    return ExitCode::kDone;
  }
  const InterruptWatch watch;
  if (request.disk.empty()) return mount_files_at(context, request);
  return mount_disk_at(context, request, disks);
}

}  // namespace

void add_snapshot_mount(CLI::App& snapshot, Context& context) {
  CLI::App* verb =
      snapshot.add_subcommand("mount", "Show the files as they were in a directory, read-only, until Ctrl-C");
  auto request = std::make_shared<MountRequest>();
  verb->add_option("VM", request->guest.domain, "The domain")->required();
  verb->add_option("NAME", request->guest.snapshot, "The snapshot")->required();
  verb->add_option("DIRECTORY", request->directory, "An empty one")->required();
  CLI::Option* disk =
      verb->add_option("--disk", request->disk, "This disk, byte by byte, as a file of that name, rather than files")
          ->type_name("TARGET");
  CLI::Option* partition = verb->add_option("--partition", request->guest.partition,
                                            "The files of this file system: vda1, or vg/root for a logical volume")
                               ->type_name("DEVICE")
                               ->excludes(disk);
  verb->add_flag("--inspect", request->guest.inspect,
                 "The files as the operating system on the disks mounts them, which is the default where there is one")
      ->excludes(disk)
      ->excludes(partition);
  verb->callback([&context, request] { context.action = [&context, request] { return mount(context, *request); }; });
}

}  // namespace varve::cli
