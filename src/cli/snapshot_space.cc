#include "cli/snapshot_space.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/text_table.h"
#include "inspect/space.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct SpaceRequest {
  std::string domain;
  std::string range;  // "A..B"; empty: none
};

// A name may have two dots in it: every place where they stand is tried.
Result<uint64_t> bytes_of_range(const DomainSpace& space, const std::string& range) {
  std::optional<Error> error;
  for (size_t at = range.find(".."); at != std::string::npos; at = range.find("..", at + 1)) {
    auto bytes = space.exclusive_bytes(range.substr(0, at), range.substr(at + 2));
    if (bytes) return bytes;
    if (!error || error->kind == ErrorKind::kNotFound) error = std::move(bytes).error();
  }
  if (error) return std::move(*error);
  return make_error(ErrorKind::kInvalidArgument, fmt::format("--range {} is not understood", range))
      .with_note("it is written FIRST..LAST, with the names of two snapshots");
}

json point_json(const qcow2::PointSpace& space) {
  return {{"referenced", space.referenced_bytes},
          {"exclusive", space.exclusive_bytes},
          {"shared_with_previous", space.shared_with_previous_bytes},
          {"tables", space.table_bytes}};
}

json snapshot_json(const DomainSpace& space, const SnapshotSpace& snapshot) {
  json result = {{"name", snapshot.name.empty() ? json() : json(snapshot.name)},
                 {"has_metadata", snapshot.summary.has_value()},
                 {"memory", snapshot.memory_bytes},
                 {"metadata", snapshot.metadata_bytes},
                 {"total", snapshot.disks.empty() ? json() : point_json(space.total(snapshot))},
                 {"disks", json::object()}};
  for (const auto& [disk, point] : snapshot.disks) {
    result["disks"][space.disks[disk].target] = point_json(space.disks[disk].space->points()[point]);
  }
  return result;
}

json disk_json(const DiskSpace& disk) {
  json files = json::array();
  for (const DiskFile& file : disk.files) {
    json entry = {{"path", file.path}, {"host_path", file.shown_path}};
    entry["size"] = file.usage ? json(file.usage->size_bytes) : json();
    entry["occupied"] = file.usage ? json(file.usage->occupied_bytes) : json();
    entry["shared_with_other_files"] =
        file.usage && file.usage->shared_bytes ? json(*file.usage->shared_bytes) : json();
    files.push_back(std::move(entry));
  }
  return {{"target", disk.target}, {"files", files}, {"problem", disk.problem.empty() ? json() : json(disk.problem)}};
}

// Its part of the largest, in twenty columns.
std::string bar(uint64_t bytes, uint64_t most) {
  constexpr uint64_t kColumns = 20;
  const uint64_t filled =
      most == 0 ? 0 : (bytes / 1024 * kColumns + most / 1024 / 2) / std::max<uint64_t>(most / 1024, 1);
  std::string text;
  for (uint64_t i = 0; i < kColumns; ++i) text += i < filled ? "█" : "·";
  return text;
}

std::string table_of(const DomainSpace& space) {
  uint64_t most = 0;
  bool any_memory = false;
  for (const SnapshotSpace& snapshot : space.snapshots) {
    most = std::max(most, space.total(snapshot).referenced_bytes);
    any_memory = any_memory || snapshot.memory_bytes != 0;
  }
  std::vector<std::string> header = {"Name", "Holds", "", "Alone", "As before"};
  if (any_memory) header.emplace_back("Memory");
  TextTable table(std::move(header));
  for (const SnapshotSpace& snapshot : space.snapshots) {
    const qcow2::PointSpace total = space.total(snapshot);
    const bool is_known = !snapshot.disks.empty();
    const auto size = [&](uint64_t bytes) { return is_known ? format_size(bytes) : std::string("-"); };
    std::string name = snapshot.name.empty() ? "(now)" : visible(snapshot.name);
    if (!snapshot.summary && !snapshot.name.empty()) name += " (no metadata)";
    std::vector<std::string> row = {name, size(total.referenced_bytes),
                                    is_known               ? bar(total.referenced_bytes, most)
                                    : snapshot.is_external ? "external"
                                                           : "",
                                    size(total.exclusive_bytes), size(total.shared_with_previous_bytes)};
    if (any_memory) row.push_back(snapshot.memory_bytes == 0 ? "-" : format_size(snapshot.memory_bytes));
    table.add(std::move(row), snapshot.summary && snapshot.summary->current);
  }
  return table.to_string();
}

std::string text_of(const DomainSpace& space) {
  std::string text = table_of(space);
  text +=
      "\nAlone: what nothing else has; deleting the snapshot gives it back. As before: what the one before has, too.\n";
  for (const DiskSpace& disk : space.disks) {
    for (size_t i = 0; i < disk.files.size(); ++i) {
      const DiskFile& file = disk.files[i];
      text += fmt::format("{:<13} {}", i == 0 ? fmt::format("Disk {}:", visible(disk.target)) : "  upon",
                          visible(file.shown_path));
      if (!file.usage) {
        text += file.problem.empty() ? "\n" : fmt::format("   {}\n", visible(file.problem));
        continue;
      }
      text += fmt::format(", {} of the file system", format_size(file.usage->occupied_bytes));
      if (file.usage->shared_bytes.value_or(0) != 0) {
        text += fmt::format(", {} of them shared with other files", format_size(*file.usage->shared_bytes));
      }
      text += "\n";
    }
    if (!disk.problem.empty())
      text += fmt::format("{:<13} {}\n", disk.files.empty() ? fmt::format("Disk {}:", visible(disk.target)) : "",
                          visible(disk.problem));
  }
  return text;
}

Result<ExitCode> show_space(Context& context, const SpaceRequest& request) {
  const auto host = TRY(open_host(context, "snapshot space " + request.domain));
  const DomainSpace space = TRY(space_of_domain(*host, request.domain));
  std::optional<uint64_t> range;
  if (!request.range.empty()) range = TRY(bytes_of_range(space, request.range));
  if (context.options.json) {
    json result = {{"domain", request.domain}, {"disks", json::array()}, {"snapshots", json::array()}};
    for (const DiskSpace& disk : space.disks) result["disks"].push_back(disk_json(disk));
    for (const SnapshotSpace& snapshot : space.snapshots) {
      if (!snapshot.name.empty()) result["snapshots"].push_back(snapshot_json(space, snapshot));
    }
    result["now"] = snapshot_json(space, space.snapshots.back());
    if (range) result["range"] = {{"snapshots", request.range}, {"exclusive", *range}};
    print_json(context, result);
    return ExitCode::kDone;
  }
  if (range) {
    context.output.print(
        fmt::format("Deleting {} gives back {} ({} bytes).\n", visible(request.range), format_size(*range), *range));
    return ExitCode::kDone;
  }
  context.output.print(text_of(space));
  return ExitCode::kDone;
}

}  // namespace

void add_snapshot_space(CLI::App& snapshot, Context& context) {
  CLI::App* space = snapshot.add_subcommand("space", "Show what each snapshot holds, and what it alone holds");
  auto request = std::make_shared<SpaceRequest>();
  space->add_option("VM", request->domain, "The domain")->required();
  space->add_option("--range", request->range, "FIRST..LAST: what deleting all of these would give back");
  space->callback(
      [&context, request] { context.action = [&context, request] { return show_space(context, *request); }; });
}

}  // namespace varve::cli
