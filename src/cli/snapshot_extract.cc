// `varve snapshot extract`: a disk as it was at a snapshot, as an image of its own.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "cli/plan_text.h"
#include "cli/snapshot_points.h"
#include "image/convert.h"
#include "image/create.h"
#include "inspect/snapshot_points.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct ExtractRequest {
  std::string domain;
  std::string name;
  std::string target;  // the file
  std::string disk;
  std::string format;
};

Result<image::Format> format_of(const ExtractRequest& request) {
  std::string format = request.format;
  if (format.empty()) {
    for (const char* ending : {"qcow2", "raw"}) {
      if (request.target.ends_with(std::string(".") + ending)) format = ending;
    }
    if (request.target.ends_with(".img")) format = "raw";
  }
  if (const auto known = image::format_of_name(format)) return *known;
  return make_error(ErrorKind::kInvalidArgument,
                    fmt::format("'{}' does not say which format the new image is to have", request.target))
      .with_note("a name that ends in .qcow2, .raw or .img does, and so does --format");
}

Result<DiskPoint> point_to_extract(Host& host, const ExtractRequest& request) {
  std::vector<std::string> targets;
  if (!request.disk.empty()) targets.push_back(request.disk);
  auto points = TRY(points_of_snapshot(host, request.domain, request.name, targets));
  if (points.size() == 1) return std::move(points.front());
  std::string all;
  for (const DiskPoint& point : points) all += (all.empty() ? "" : ", ") + point.target;
  return make_error(ErrorKind::kInvalidArgument, fmt::format("snapshot '{}' has several disks: {}", request.name, all))
      .with_note(fmt::format("`--disk {}` says which; each goes into an image of its own", points.front().target));
}

// The name is taken before anything is read, and not given to an image that is there.
Result<void> claim(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (fd) return {};
  if (errno != EEXIST) return system_error(errno, fmt::format("cannot make '{}'", path), path);
  return make_error(ErrorKind::kAlreadyExists, fmt::format("'{}' is there already", path))
      .with_note("choose another name, or remove it first; nothing was changed");
}

Result<void> copy(Context& context, const image::Point& point, const std::string& path, image::Format format) {
  if (format == image::Format::kQcow2) {
    TRY(image::create_qcow2(path, {.size = point.size()}));
  } else {
    TRY(image::create_raw(path, point.size()));
  }
  const auto target = TRY(image::open_image(path, {.format = format, .use = image::Use::kWrite}));
  const InterruptWatch watch;
  ProgressBar bar("extract", !context.options.quiet);
  TRY(image::convert({{.layers = point.layers(), .size = point.size()}}, *target.device(),
                     {.target_zero_from = 0,
                      .progress = [&](uint64_t done, uint64_t total) { bar.update(done, total); },
                      .interrupted = interrupted}));
  return target.device()->flush();
}

Result<ExitCode> extract(Context& context, const ExtractRequest& request) {
  const image::Format format = TRY(format_of(request));
  const auto host = TRY(open_host(context, "snapshot extract " + request.domain));
  const DiskPoint disk = TRY(point_to_extract(*host, request));
  const auto point = TRY(open_point(request.domain, disk));
  if (context.options.dry_run) {
    struct stat there{};
    if (::lstat(request.target.c_str(), &there) == 0) TRY(claim(request.target));
    Plan plan;
    plan.title = fmt::format("extract disk {} of snapshot '{}' of '{}'", disk.target, request.name, request.domain);
    plan.steps.push_back(fmt::format("copy it, {} in size, to {}", format_size(point->size()), request.target));
    print_plan(context.output, context.options.json, plan);
    return ExitCode::kDone;
  }
  TRY(claim(request.target));
  // "nbd:disk.raw" is a file, too.
  const std::string path = std::filesystem::absolute(request.target);
  if (auto copied = copy(context, *point, path, format); !copied) {
    ::unlink(request.target.c_str());
    return std::move(copied)
        .error()
        .context(fmt::format("disk {} of snapshot '{}' is not extracted", disk.target, request.name))
        .with_note(fmt::format("'{}' is removed again", request.target));
  }
  if (context.options.json) {
    print_json(context, json{{"domain", request.domain},
                             {"snapshot", request.name},
                             {"disk", disk.target},
                             {"file", request.target},
                             {"format", image::name_of(format)},
                             {"size", point->size()}});
  } else if (!context.options.quiet) {
    context.output.print(fmt::format("Disk {} of snapshot '{}' is in {}.\n", visible(disk.target),
                                     visible(request.name), visible(request.target)));
  }
  return ExitCode::kDone;
}

}  // namespace

void add_snapshot_extract(CLI::App& snapshot, Context& context) {
  CLI::App* verb = snapshot.add_subcommand("extract", "Copy a disk as it was into an image of its own");
  auto request = std::make_shared<ExtractRequest>();
  verb->add_option("VM", request->domain, "The domain")->required();
  verb->add_option("NAME", request->name, "The snapshot")->required();
  verb->add_option("FILE", request->target, "The new image: OUT.qcow2 or OUT.raw")->required();
  verb->add_option("--disk", request->disk, "Which disk, where there are several, e.g. vda")->type_name("TARGET");
  verb->add_option("--format", request->format, "Its format, where the name does not say it")
      ->check(CLI::IsMember({"qcow2", "raw"}));
  verb->callback([&context, request] { context.action = [&context, request] { return extract(context, *request); }; });
}

}  // namespace varve::cli
