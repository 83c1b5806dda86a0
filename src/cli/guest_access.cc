#include "cli/guest_access.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <optional>

#include "cli/interrupt.h"
#include "cli/local_host.h"

namespace varve::cli {

namespace {

using guestfs::GuestFiles;
using guestfs::GuestFileSystem;
using guestfs::GuestSystem;

// libguestfs's default may be libvirt, which would start the appliance as a user who can't reach our socket.
std::string backend() {
  return std::getenv("LIBGUESTFS_BACKEND") == nullptr ? "direct" : "";
}

Result<void> mount_partition(const GuestRequest& request, GuestFiles& files) {
  const auto systems = TRY(files.file_systems());
  const std::string wanted = request.partition.starts_with("/dev/") ? request.partition.substr(5) : request.partition;
  const auto found = std::ranges::find(systems, wanted, &GuestFileSystem::name);
  if (found != systems.end()) return files.mount(*found);
  return make_error(ErrorKind::kNotFound, fmt::format("there is no file system {} in snapshot '{}' of '{}'",
                                                      request.partition, request.snapshot, request.domain))
      .with_note(fmt::format("there is {}", list_of(systems)));
}

// Nothing: there is none.
Result<std::optional<GuestSystem>> the_system(const GuestRequest& request, GuestFiles& files) {
  std::vector<GuestSystem> systems = TRY(files.systems());
  if (systems.size() == 1) return std::optional(std::move(systems.front()));
  if (systems.empty()) return std::optional<GuestSystem>();
  std::string names;
  for (const GuestSystem& system : systems) names += (names.empty() ? "" : ", ") + system.name;
  return make_error(ErrorKind::kInvalidArgument,
                    fmt::format("there are {} operating systems in snapshot '{}' of '{}': {}", systems.size(),
                                request.snapshot, request.domain, names))
      .with_note(fmt::format("`--partition` says which file system is meant: {}", list_of(TRY(files.file_systems()))));
}

Result<void> mount_the_only_one(const GuestRequest& request, GuestFiles& files) {
  const auto systems = TRY(files.file_systems());
  std::vector<GuestFileSystem> readable;
  std::ranges::copy_if(systems, std::back_inserter(readable), &GuestFileSystem::has_files);
  if (readable.size() == 1) return files.mount(readable.front());
  if (readable.empty()) {
    return make_error(ErrorKind::kNotFound,
                      fmt::format("no file system is found in snapshot '{}' of '{}'", request.snapshot, request.domain))
        .with_note(systems.empty() ? "its disks are empty, or hold something else"
                                   : fmt::format("there is {}", list_of(systems)));
  }
  return make_error(ErrorKind::kInvalidArgument,
                    fmt::format("there are {} file systems in snapshot '{}' of '{}', and no operating system that says "
                                "where they belong: {}",
                                readable.size(), request.snapshot, request.domain, list_of(systems)))
      .with_note(fmt::format("`--partition {}` says which is meant", readable.front().name));
}

}  // namespace

PlaceInside parse_place(const std::string& text) {
  const size_t at = text.find(":/");
  if (at == std::string::npos) return {.snapshot = text, .path = "/"};
  std::string path = text.substr(at + 1);
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return {.snapshot = text.substr(0, at), .path = path};
}

void add_guest_options(CLI::App& verb, GuestRequest& request) {
  verb.add_option("--disk", request.disks, "Look at this disk only; may be repeated")
      ->type_name("TARGET")
      ->expected(1)
      ->take_all();
  CLI::Option* partition =
      verb.add_option("--partition", request.partition, "Of this file system: vda1, or vg/root for a logical volume")
          ->type_name("DEVICE");
  verb.add_flag("--inspect", request.inspect,
                "As the operating system on the disks mounts them, which is the default where there is one")
      ->excludes(partition);
}

std::string list_of(const std::vector<GuestFileSystem>& file_systems) {
  std::string text;
  for (const GuestFileSystem& one : file_systems) {
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", one.name, one.type);
  }
  return text.empty() ? "none" : text;
}

Error stopped() {
  return make_error(ErrorKind::kInterrupted, "it was stopped");
}

Error unless_interrupted(Error error) {
  return interrupted() ? stopped() : std::move(error);
}

Result<std::vector<DiskPoint>> points_to_look_into(Host& host, const GuestRequest& request) {
  auto points = points_of_snapshot(host, request.domain, request.snapshot, request.disks);
  if (!points && request.snapshot.find(':') != std::string::npos) {
    return std::move(points).error().with_note("a path inside begins with a slash: NAME:/PATH");
  }
  return points;
}

Result<Guest> open_guest(const Context& context, PointServer server) {
  std::vector<guestfs::GuestDisk> given;
  for (const std::string& target : server.targets()) {
    given.push_back({.target = target, .export_name = target, .socket = server.socket()});
  }
  ProgressBar bar("start libguestfs's appliance", !context.options.quiet);
  bar.update(0, 1);
  auto files = GuestFiles::start(given, backend());
  if (!files) return unless_interrupted(std::move(files).error());
  return Guest{.server = std::move(server), .files = *std::move(files)};
}

Result<Guest> open_guest(Context& context, const GuestRequest& request, const std::string& command) {
  const auto host = TRY(open_host(context, command + " " + request.domain));
  const auto disks = TRY(points_to_look_into(*host, request));
  auto guest = open_guest(context, TRY(PointServer::start(request.domain, disks)));
  if (guest && interrupted()) return stopped();
  return guest;
}

Result<void> mount_files(Context& context, const GuestRequest& request, GuestFiles& files) {
  const auto mount = [&]() -> Result<void> {
    if (!request.partition.empty()) return mount_partition(request, files);
    if (const auto system = TRY(the_system(request, files))) {
      for (const std::string& note : TRY(files.mount(*system))) context.output.error(visible(note));
      return {};
    }
    if (!request.inspect) return mount_the_only_one(request, files);
    return make_error(ErrorKind::kNotFound, fmt::format("no operating system is found in snapshot '{}' of '{}'",
                                                        request.snapshot, request.domain))
        .with_note(fmt::format("`--partition` reads a file system by itself: {}", list_of(TRY(files.file_systems()))));
  };
  auto mounted = mount();
  if (!mounted) return unless_interrupted(std::move(mounted).error());
  return mounted;
}

}  // namespace varve::cli
