#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/snapshot_diff_files.h"
#include "cli/snapshot_space.h"
#include "inspect/difference.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct DiffRequest {
  FilesDiffRequest points;
  bool files = false;
};

json disk_json(const DiskDifference& disk) {
  json result = {{"target", disk.target},
                 {"problem", disk.problem.empty() ? json() : json(disk.problem)},
                 {"bytes", disk.places ? json(disk.places->differing_bytes()) : json()},
                 {"extents", json::array()}};
  if (!disk.places) return result;
  for (const auto& [offset, length] : disk.places->ranges) {
    result["extents"].push_back({{"start", offset}, {"length", length}});
  }
  return result;
}

std::string text_of(const DiskDifference& disk) {
  if (!disk.places) return fmt::format("Disk {}: {}\n", visible(disk.target), visible(disk.problem));
  const auto& ranges = disk.places->ranges;
  if (ranges.empty()) return fmt::format("Disk {}: no difference\n", visible(disk.target));
  std::string text =
      fmt::format("Disk {}: {} in {} extent{}\n", visible(disk.target), format_size(disk.places->differing_bytes()),
                  ranges.size(), ranges.size() == 1 ? "" : "s");
  constexpr size_t kMost = 10;
  for (size_t i = 0; i < ranges.size() && i < kMost; ++i) {
    text += fmt::format("  {:>#14x}  {}\n", ranges[i].first, format_size(ranges[i].second));
  }
  if (ranges.size() > kMost) text += fmt::format("  and {} more; --json has them all\n", ranges.size() - kMost);
  return text;
}

Result<ExitCode> show_difference(Context& context, const DiffRequest& asked) {
  const FilesDiffRequest& request = asked.points;
  const auto host = TRY(open_host(context, "snapshot diff " + request.domain));
  PointsDifference difference = TRY(difference_of_points(*host, request.domain, request.one, request.other));
  if (!request.disk.empty()) {
    std::erase_if(difference.disks, [&](const DiskDifference& disk) { return disk.target != request.disk; });
    if (difference.disks.empty()) {
      return make_error(ErrorKind::kNotFound, fmt::format("no disk {} is part of it", request.disk));
    }
  }
  bool whole = true;
  if (context.options.json) {
    json result = {
        {"domain", request.domain},
        {"from", request.one},
        {"to", request.other.empty() ? json() : json(request.other)},
        {"definition", difference.definition_problem.empty() ? json(difference.definition) : json()},
        {"definition_problem", difference.definition_problem.empty() ? json() : json(difference.definition_problem)},
        {"disks", json::array()}};
    for (const DiskDifference& disk : difference.disks) result["disks"].push_back(disk_json(disk));
    if (asked.files) {
      result["files"] = json::array();
      whole = TRY(diff_files(context, *host, request, &result["files"]));
    }
    print_json(context, result);
    return whole ? ExitCode::kDone : ExitCode::kFailed;
  }
  std::string text = "Definition: no difference\n";
  if (!difference.definition_problem.empty()) {
    text = fmt::format("Definition: {}\n", visible(difference.definition_problem));
  } else if (!difference.definition.empty()) {
    text = "Definition:\n" + visible_lines(difference.definition);
  }
  for (const DiskDifference& disk : difference.disks) text += text_of(disk);
  context.output.print(text);
  if (asked.files) whole = TRY(diff_files(context, *host, request, nullptr));
  return whole ? ExitCode::kDone : ExitCode::kFailed;
}

}  // namespace

void add_snapshot_diff(CLI::App& snapshot, Context& context) {
  CLI::App* diff = snapshot.add_subcommand("diff", "Show what differs between two snapshots, or a snapshot and now");
  auto request = std::make_shared<DiffRequest>();
  diff->add_option("VM", request->points.domain, "The domain")->required();
  diff->add_option("FROM", request->points.one, "A snapshot")->required();
  diff->add_option("TO", request->points.other, "Another one; without it, the present state");
  diff->add_option("--disk", request->points.disk, "Of this disk alone, e.g. vda");
  diff->add_flag("--files", request->files, "With the files that differ, which libguestfs reads");
  diff->callback(
      [&context, request] { context.action = [&context, request] { return show_difference(context, *request); }; });
}

}  // namespace varve::cli
