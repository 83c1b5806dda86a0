// `varve where VM [NAME]`: the page of documentation that users of snapshots look for, computed from their own machine.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/text_table.h"
#include "inspect/where.h"
#include "operation/preflight.h"

namespace varve::cli {

namespace {

using nlohmann::json;

constexpr size_t kLabelWidth = 12;

// "  disk vda     text", further lines below the text.
void entry(std::string& out, const std::string& label, const std::string& text) {
  out += fmt::format("  {:<{}} {}\n", visible(label), kLabelWidth, visible(text));
}
void more(std::string& out, const std::string& text) {
  entry(out, "", text);
}

// As virt-manager calls it.
std::string in_pool(const FileLocation& file) {
  return file.volume ? fmt::format("  [pool '{}', volume '{}']", file.volume->pool, file.volume->name) : "";
}

std::string with_presence(const FileLocation& file) {
  return file.shown_path + in_pool(file) + (file.exists ? "" : "   MISSING");
}

json file_json(const FileLocation& file) {
  json result = {{"path", file.path}, {"host_path", file.shown_path}, {"exists", file.exists}};
  if (file.volume) result["volume"] = {{"pool", file.volume->pool}, {"name", file.volume->name}};
  return result;
}

json files_json(const std::vector<FileLocation>& files) {
  json result = json::array();
  for (const FileLocation& file : files) result.push_back(file_json(file));
  return result;
}

// An image is not always a file that could be looked for.
json image_json(const DiskLocation& disk) {
  json result = file_json(disk.image);
  if (!disk.is_path()) result["exists"] = nullptr;
  return result;
}

std::string shown_image(const DiskLocation& disk, const std::string& addition) {
  if (disk.image.path.empty()) return "empty";
  if (!disk.is_path()) return disk.image.shown_path + addition + ", which is no file of this host";
  return disk.image.shown_path + addition + in_pool(disk.image) + (disk.image.exists ? "" : "   MISSING");
}

// True, false, or null where nobody can tell now.
json completeness(const std::vector<std::string>& missing, const std::vector<std::string>& hidden) {
  if (!missing.empty()) return false;
  return hidden.empty() ? json(true) : json();
}

json disk_json(const DiskLocation& disk) {
  json result = {{"target", disk.target},
                 {"mode", name_of(disk.mode)},
                 {"format", disk.format},
                 {"image", image_json(disk)},
                 {"moved_from", disk.moved_from.empty() ? json() : json(disk.moved_from)},
                 {"backing_chain", files_json(disk.backing_chain)},
                 {"problem", disk.problem.empty() ? json() : json(disk.problem)},
                 {"entry", json()}};
  if (!disk.point) return result;
  const PointLocation& point = *disk.point;
  result["entry"] = {{"id", point.id},
                     {"tag", point.tag},
                     {"date", point.date_sec},
                     {"vm_state_bytes", point.vm_state_bytes},
                     {"disk_bytes", point.disk_bytes ? json(*point.disk_bytes) : json()},
                     {"referenced_bytes", point.usage ? json(point.usage->referenced_bytes) : json()},
                     {"exclusive_bytes", point.usage ? json(point.usage->exclusive_bytes) : json()}};
  return result;
}

json snapshot_json(const std::string& domain, const SnapshotLocation& location) {
  json disks = json::array();
  for (const DiskLocation& disk : location.disks) disks.push_back(disk_json(disk));
  return {{"domain", domain},
          {"snapshot", location.summary.name},
          {"creation_time", location.summary.creation_time},
          {"state", name_of(location.summary.state)},
          {"current", location.summary.current},
          {"complete", completeness(location.missing, location.hidden)},
          {"missing", location.missing},
          {"hidden", location.hidden},
          {"metadata", file_json(location.metadata)},
          {"definition", location.definition ? file_json(*location.definition) : json()},
          {"definition_in_metadata", location.holds_definition},
          {"disks", disks},
          {"memory", location.memory ? file_json(*location.memory) : json()},
          {"nvram", location.nvram ? file_json(*location.nvram) : json()},
          {"to_restore", location.to_restore}};
}

void describe_disk(std::string& out, const DiskLocation& disk) {
  const std::string label = "disk " + disk.target;
  if (disk.mode == SnapshotMode::kNo) {
    entry(out, label, "not part of the snapshot");
    return;
  }
  if (disk.mode == SnapshotMode::kInternal) {
    entry(out, label, "inside of " + shown_image(disk, ""));
  } else {
    entry(out, label, shown_image(disk, fmt::format(" ({})", name_of(disk.mode))));
  }
  if (!disk.moved_from.empty()) more(out, fmt::format("(it was {} then)", disk.moved_from));
  if (disk.point) {
    const PointLocation& point = *disk.point;
    more(out, fmt::format("entry {} '{}' of its snapshot table, {}, VM size {}", point.id, point.tag,
                          local_time(point.date_sec), format_size(point.vm_state_bytes)));
    if (point.usage) {
      more(out, fmt::format("holds {} ({} bytes) of the image; {} ({} bytes) of them nothing else needs",
                            format_size(point.usage->referenced_bytes), point.usage->referenced_bytes,
                            format_size(point.usage->exclusive_bytes), point.usage->exclusive_bytes));
    }
  }
  if (!disk.problem.empty() && disk.image.exists) more(out, "PROBLEM: " + disk.problem);
  for (const FileLocation& file : disk.backing_chain) more(out, "on top of " + with_presence(file));
}

Result<ExitCode> show_snapshot_location(Context& context, const std::string& domain, const std::string& snapshot) {
  const auto host = TRY(open_host(context, "where " + domain));
  const SnapshotLocation location = TRY(where_is_snapshot(*host, domain, snapshot));
  if (context.options.json) {
    print_json(context, snapshot_json(domain, location));
    return ExitCode::kDone;
  }
  std::string out =
      fmt::format("Snapshot '{}' of '{}', {}{}: {}\n\n", visible(location.summary.name), visible(domain),
                  local_time(location.summary.creation_time), location.summary.current ? ", the current one" : "",
                  location.is_complete()     ? "complete"
                  : location.missing.empty() ? "complete as far as can be told now"
                                             : "NOT COMPLETE");
  entry(out, "metadata", with_presence(location.metadata));
  for (const DiskLocation& disk : location.disks) describe_disk(out, disk);
  if (location.memory) entry(out, "memory", with_presence(*location.memory));
  if (location.holds_definition) entry(out, "definition", "of that time: in the metadata");
  if (location.definition) {
    const std::string text = "of today: " + with_presence(*location.definition);
    location.holds_definition ? more(out, text) : entry(out, "definition", text);
  }
  if (location.nvram) entry(out, "NVRAM", with_presence(*location.nvram) + " (not part of the snapshot)");
  out += '\n';
  const bool inside = std::ranges::any_of(
      location.disks, [](const DiskLocation& disk) { return disk.mode == SnapshotMode::kInternal; });
  if (inside) {
    out +=
        "There is no separate snapshot file: the old data is inside of the disk image, beside the present data, and\n"
        "goes wherever the image goes. Don't delete or replace the image.\n";
  }
  out += visible(location.to_restore) + "\n";
  context.output.print(out);
  return ExitCode::kDone;
}

json domain_json(const DomainLocation& location) {
  json disks = json::array();
  for (const DiskLocation& disk : location.disks) {
    disks.push_back({{"target", disk.target},
                     {"format", disk.format},
                     {"image", image_json(disk)},
                     {"backing_chain", files_json(disk.backing_chain)},
                     {"problem", disk.problem.empty() ? json() : json(disk.problem)}});
  }
  json snapshots = json::array();
  for (const DomainLocation::Brief& brief : location.snapshots) {
    snapshots.push_back({{"name", brief.summary.name},
                         {"creation_time", brief.summary.creation_time},
                         {"state", name_of(brief.summary.state)},
                         {"current", brief.summary.current},
                         {"metadata", file_json(brief.metadata)},
                         {"disks", brief.disks},
                         {"complete", completeness(brief.missing, brief.hidden)},
                         {"missing", brief.missing},
                         {"hidden", brief.hidden}});
  }
  return {{"domain", location.name},
          {"definition", file_json(location.definition)},
          {"nvram", location.nvram ? file_json(*location.nvram) : json()},
          {"snapshot_directory", file_json(location.snapshot_directory)},
          {"disks", disks},
          {"snapshots", snapshots},
          {"problems", location.problems},
          {"unknown_points", location.unknown_points}};
}

// Why snapshots are not complete, or why that is not known: every reason once, with those that it holds for.
std::string reasons_of(const std::vector<DomainLocation::Brief>& snapshots) {
  std::vector<std::string> reasons;
  std::map<std::string, std::vector<std::string>> names;
  for (const DomainLocation::Brief& brief : snapshots) {
    for (const auto* lines : {&brief.missing, &brief.hidden}) {
      for (const std::string& line : *lines) {
        if (!names.contains(line)) reasons.push_back(line);
        names[line].push_back(brief.summary.name);
      }
    }
  }
  std::string text = reasons.empty() ? "" : "\n";
  for (const std::string& reason : reasons) {
    text += fmt::format("{}: {}\n", visible(list_of(names[reason])), visible(reason));
  }
  return text;
}

Result<ExitCode> show_domain_location(Context& context, const std::string& domain) {
  const auto host = TRY(open_host(context, "where " + domain));
  const DomainLocation location = TRY(where_is_domain(*host, domain));
  if (context.options.json) {
    print_json(context, domain_json(location));
    return ExitCode::kDone;
  }
  std::string out = fmt::format("Domain '{}'\n\n", visible(domain));
  entry(out, "definition", with_presence(location.definition));
  for (const DiskLocation& disk : location.disks) {
    const std::string format = disk.format.empty() ? "" : fmt::format(" ({})", disk.format);
    entry(out, "disk " + disk.target, shown_image(disk, format));
    for (const FileLocation& file : disk.backing_chain) more(out, "on top of " + with_presence(file));
    if (!disk.problem.empty()) more(out, "PROBLEM: " + disk.problem);
  }
  if (location.nvram) entry(out, "NVRAM", with_presence(*location.nvram));
  entry(out, "metadata", fmt::format("{}/ (one XML file per snapshot)", location.snapshot_directory.shown_path));
  out += '\n';
  if (location.snapshots.empty()) {
    out += "It has no snapshots.\n";
  } else {
    TextTable table({"Snapshot", "Creation Time", "Inside the images of", "Complete"});
    for (const DomainLocation::Brief& brief : location.snapshots) {
      table.add({brief.summary.name, local_time(brief.summary.creation_time),
                 brief.disks.empty() ? "-" : fmt::format("{}", fmt::join(brief.disks, ", ")),
                 brief.missing.empty() ? (brief.hidden.empty() ? "yes" : "?") : "NO"},
                brief.summary.current);
    }
    out += table.to_string();
    out += reasons_of(location.snapshots);
    out += fmt::format("\n`varve where '{}' NAME` says more of one.\n", visible(domain));
  }
  for (const std::string& problem : location.problems) out += "PROBLEM: " + visible(problem) + "\n";
  for (const std::string& point : location.unknown_points) {
    out += fmt::format("In an image, but in no metadata: {}\n", visible(point));
  }
  context.output.print(out);
  return ExitCode::kDone;
}

}  // namespace

void add_where_commands(CLI::App& app, Context& context) {
  CLI::App* where = app.add_subcommand("where", "Show every file that a domain or a snapshot is made of");
  auto names = std::make_shared<std::pair<std::string, std::string>>();
  where->add_option("VM", names->first)->required();
  where->add_option("NAME", names->second, "A snapshot");
  where->callback([&context, names] {
    context.action = [&context, names] {
      return names->second.empty() ? show_domain_location(context, names->first)
                                   : show_snapshot_location(context, names->first, names->second);
    };
  });
}

}  // namespace varve::cli
