// `varve snapshot ls`, `cat`, `cp`: files inside of a snapshot's disks.
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/guest_access.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "cli/plan_text.h"
#include "cli/snapshot_points.h"
#include "cli/text_table.h"
#include "guestfs/copy_out.h"

namespace varve::cli {

namespace {

using guestfs::GuestFile;
using guestfs::GuestFileKind;
using guestfs::GuestFiles;
using guestfs::GuestFileSystem;
using nlohmann::json;

struct FilesRequest {
  GuestRequest guest;
  std::string place;
  std::string target;  // of cp
  bool is_long = false;
  bool partitions = false;
};

// What the verbs begin with.
Result<Guest> open_files(Context& context, FilesRequest& request, const std::string& command) {
  const PlaceInside place = parse_place(request.place);
  request.guest.snapshot = place.snapshot;
  request.place = place.path;
  return open_guest(context, request.guest, command);
}

// Which snapshot an error is about.
Error about(const FilesRequest& request, Error error) {
  if (error.kind == ErrorKind::kNotFound) {
    error.notes.push_back(fmt::format("`varve snapshot ls '{}' '{}:/'` shows what is there", request.guest.domain,
                                      request.guest.snapshot));
  }
  return unless_interrupted(
      std::move(error).context(fmt::format("snapshot '{}' of '{}'", request.guest.snapshot, request.guest.domain)));
}

json json_of(const GuestFile& file) {
  return {{"name", file.name},
          {"kind", name_of(file.kind)},
          {"mode", fmt::format("{:04o}", file.mode)},
          {"owner", file.owner},
          {"group", file.group},
          {"size_bytes", file.size_bytes},
          {"modified_sec", file.modified_sec},
          {"modified_nsec", file.modified_nsec},
          {"target", file.kind == GuestFileKind::kLink ? json(file.link_target) : json()}};
}

std::string long_lines(const std::vector<GuestFile>& files) {
  size_t owner = 1;
  size_t group = 1;
  size_t size = 1;
  for (const GuestFile& file : files) {
    owner = std::max(owner, std::to_string(file.owner).size());
    group = std::max(group, std::to_string(file.group).size());
    size = std::max(size, std::to_string(file.size_bytes).size());
  }
  std::string text;
  for (const GuestFile& file : files) {
    text += fmt::format("{} {:>{}} {:>{}} {:>{}} {} {}", mode_text(file), file.owner, owner, file.group, group,
                        file.size_bytes, size, format_local_time(file.modified_sec), visible(file.name));
    if (file.kind == GuestFileKind::kLink) text += " -> " + visible(file.link_target);
    text += '\n';
  }
  return text;
}

Result<ExitCode> list_partitions(Context& context, GuestFiles& files) {
  TextTable table({"Device", "Type", "Size", "Label"});
  json result = json::array();
  for (const GuestFileSystem& one : TRY(files.file_systems())) {
    // What can't be told (of a damaged file system, say) is not shown.
    const auto size = files.size_bytes(one);
    const auto label = files.label(one);
    table.add({visible(one.name), visible(one.type), size ? format_size(*size) : "-",
               label && !label->empty() ? visible(*label) : "-"});
    result.push_back({{"device", one.name},
                      {"type", one.type},
                      {"size_bytes", size ? json(*size) : json()},
                      {"label", label ? json(*label) : json()}});
  }
  if (context.options.json) {
    print_json(context, result);
  } else {
    context.output.print(table.to_string());
  }
  return ExitCode::kDone;
}

Result<ExitCode> list_files(Context& context, FilesRequest request) {
  const InterruptWatch watch;
  const Guest guest = TRY(open_files(context, request, "snapshot ls"));
  if (request.partitions) return list_partitions(context, *guest.files);
  TRY(mount_files(context, request.guest, *guest.files));
  const auto list = [&]() -> Result<std::vector<GuestFile>> {
    GuestFile itself = TRY(guest.files->look_at(request.place));
    const auto behind = guest.files->look_up(request.place);  // a link may lead nowhere
    if (behind && behind->kind == GuestFileKind::kDirectory) return guest.files->list(request.place);
    itself.name = request.place;
    return std::vector{std::move(itself)};
  };
  auto listed = list();
  if (!listed) return about(request, std::move(listed).error());
  std::vector<GuestFile> files = *std::move(listed);
  std::ranges::sort(files, {}, &GuestFile::name);
  if (context.options.json) {
    json result = json::array();
    for (const GuestFile& file : files) result.push_back(json_of(file));
    print_json(context, result);
    return ExitCode::kDone;
  }
  std::string text;
  for (const GuestFile& file : files) text += visible(file.name) + "\n";
  context.output.print(request.is_long ? long_lines(files) : text);
  return ExitCode::kDone;
}

// `no_reader`: nobody reads any more what is printed.
Result<ExitCode> print_file(Context& context, FilesRequest request, bool& no_reader) {
  const InterruptWatch watch;
  const Guest guest = TRY(open_files(context, request, "snapshot cat"));
  TRY(mount_files(context, request.guest, *guest.files));
  const auto print = [&]() -> Result<void> {
    const GuestFile file = TRY(guest.files->look_up(request.place));
    if (file.kind != GuestFileKind::kFile) {
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("{} is a {}, and no file", request.place, name_of(file.kind)));
    }
    return guestfs::pass_on(*guest.files, request.place, [&](std::string_view bytes) {
      errno = 0;
      context.output.print(bytes);
      const bool failed = std::ferror(context.output.out()) != 0;
      no_reader = failed && errno == EPIPE;
      return !interrupted() && !failed;
    });
  };
  if (auto printed = print(); !printed) return about(request, std::move(printed).error());
  if (interrupted()) return about(request, stopped());
  return ExitCode::kDone;
}

// A reader that has enough (`| head`) ends this command as it ends others, but what it runs and has made is put away
// first.
Result<ExitCode> print_file_to_pipe(Context& context, FilesRequest request) {
  const auto before = ::signal(SIGPIPE, SIG_IGN);
  bool no_reader = false;
  auto result = print_file(context, std::move(request), no_reader);
  ::signal(SIGPIPE, before);
  if (no_reader) ::raise(SIGPIPE);
  return result;
}

// Into a directory under its own name, as cp has it.
Result<std::string> target_of(const FilesRequest& request) {
  struct stat there = {};
  if (::stat(request.target.c_str(), &there) != 0 || !S_ISDIR(there.st_mode)) return request.target;
  // parse_place() has left no slash at the end but that of "/".
  const std::string name = std::filesystem::path(request.place).lexically_normal().filename();
  if (name.empty() || name == "." || name == "..") {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is there already", request.target))
        .with_note("everything in a file system needs a new directory: say a name that is not there yet");
  }
  return (std::filesystem::path(request.target) / name).string();
}

Result<ExitCode> copy_files(Context& context, FilesRequest request) {
  const PlaceInside place = parse_place(request.place);
  request.guest.snapshot = place.snapshot;
  request.place = place.path;
  const std::string target = TRY(target_of(request));
  struct stat there = {};
  if (::lstat(target.c_str(), &there) == 0) {  // before anything is started
    return make_error(ErrorKind::kAlreadyExists, fmt::format("'{}' is there already", target))
        .with_note("choose another name, or remove it first; nothing was changed");
  }
  if (context.options.dry_run) {
    const auto host = TRY(open_host(context, "snapshot cp " + request.guest.domain));
    TRY(points_to_look_into(*host, request.guest));
    Plan plan;
    plan.title = fmt::format("copy {} out of snapshot '{}' of '{}'", request.place, request.guest.snapshot,
                             request.guest.domain);
    plan.steps.push_back(fmt::format("copy it to {}, if it is there", target));
    print_plan(context.output, context.options.json, plan);
    return ExitCode::kDone;
  }
  const InterruptWatch watch;
  const Guest guest = TRY(open_guest(context, request.guest, "snapshot cp"));
  TRY(mount_files(context, request.guest, *guest.files));
  const auto copy = [&]() -> Result<guestfs::CopiedOut> {
    const GuestFile file = TRY(guest.files->look_up(request.place));
    ProgressBar bar("copy " + request.place, !context.options.quiet);
    // How much a directory holds is not known before.
    const auto size = file.kind == GuestFileKind::kFile ? static_cast<uint64_t>(file.size_bytes) : 0;
    const guestfs::CopyWatch copying = {.stop = interrupted, .progress = [&](uint64_t bytes) {
                                          if (size > 0) bar.update(bytes, size);
                                        }};
    if (file.kind == GuestFileKind::kDirectory) return copy_directory_out(*guest.files, request.place, target, copying);
    if (file.kind == GuestFileKind::kFile) return copy_file_out(*guest.files, request.place, target, copying);
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("{} is a {}, of which there is no copy", request.place, name_of(file.kind)));
  };
  auto copied = copy();
  if (!copied) return about(request, std::move(copied).error());
  for (const std::string& path : copied->left_out) {
    context.output.error(
        fmt::format("{} is left out: it is a device or a FIFO", visible(guestfs::path_in(request.place, path))));
  }
  if (context.options.json) {
    json left_out = json::array();
    for (const std::string& path : copied->left_out) left_out.push_back(path);
    print_json(context, {{"domain", request.guest.domain},
                         {"snapshot", request.guest.snapshot},
                         {"path", request.place},
                         {"target", target},
                         {"files", copied->files},
                         {"size_bytes", copied->bytes},
                         {"left_out", left_out}});
  } else if (!context.options.quiet) {
    context.output.print(
        fmt::format("{} is in {}: {}.\n", visible(request.place), visible(target), format_size(copied->bytes)));
  }
  return ExitCode::kDone;
}

std::shared_ptr<FilesRequest> add_verb(CLI::App& snapshot, Context& context, const char* name, const char* text,
                                       Result<ExitCode> (*action)(Context&, FilesRequest), CLI::App*& verb) {
  auto request = std::make_shared<FilesRequest>();
  verb = snapshot.add_subcommand(name, text);
  verb->add_option("VM", request->guest.domain, "The domain")->required();
  verb->add_option("NAME:/PATH", request->place, "The snapshot, and a path in it")->required();
  verb->callback([&context, request, action] {
    context.action = [&context, request, action] { return action(context, *request); };
  });
  return request;
}

}  // namespace

void add_snapshot_files(CLI::App& snapshot, Context& context) {
  CLI::App* verb = nullptr;
  const auto list = add_verb(snapshot, context, "ls", "List files inside of a snapshot's disks", list_files, verb);
  verb->add_flag("-l", list->is_long, "With mode, owner, group, size and time");
  verb->add_flag("--partitions", list->partitions, "The file systems instead");
  add_guest_options(*verb, list->guest);

  const auto cat =
      add_verb(snapshot, context, "cat", "Print a file inside of a snapshot's disks", print_file_to_pipe, verb);
  add_guest_options(*verb, cat->guest);

  const auto copy =
      add_verb(snapshot, context, "cp", "Copy a file or a directory out of a snapshot's disks", copy_files, verb);
  verb->add_option("TARGET", copy->target, "Where to: a directory that is there, or a new name")->required();
  add_guest_options(*verb, copy->guest);
}

}  // namespace varve::cli
