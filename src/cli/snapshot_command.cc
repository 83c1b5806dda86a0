// `varve snapshot …`: the snapshots of a domain.
#include <fmt/format.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/snapshot_points.h"
#include "cli/snapshot_space.h"
#include "cli/text_table.h"
#include "operation/create_snapshot.h"
#include "operation/delete_snapshot.h"
#include "operation/edit_snapshot.h"
#include "operation/revert_snapshot.h"

namespace varve::cli {

namespace {

using nlohmann::json;

json summary_json(const SnapshotSummary& snapshot) {
  return {{"name", snapshot.name},
          {"parent", snapshot.parent.empty() ? json() : json(snapshot.parent)},
          {"description", snapshot.description},
          {"state", name_of(snapshot.state)},
          {"creation_time", snapshot.creation_time},
          {"current", snapshot.current},
          {"safety", snapshot.safety}};
}

// "vda=internal", "vdb=no".
Result<DiskModes> parse_disk_modes(const std::vector<std::string>& texts) {
  DiskModes modes;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    const auto mode = equals == std::string::npos ? std::nullopt : snapshot_mode_from(text.substr(equals + 1));
    if (!mode || *mode == SnapshotMode::kDefault || *mode == SnapshotMode::kManual) {
      return make_error(ErrorKind::kInvalidArgument, fmt::format("--disk {} is not understood", text))
          .with_note("it is written TARGET=internal, TARGET=external or TARGET=no, e.g. vdb=no");
    }
    modes[text.substr(0, equals)] = *mode;
  }
  return modes;
}

Result<ExitCode> create_snapshot(Context& context, CreateSnapshotRequest request,
                                 const std::vector<std::string>& disks) {
  request.disks = TRY(parse_disk_modes(disks));
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  request.now_sec = static_cast<uint64_t>(now.tv_sec);
  request.now_nsec = static_cast<uint32_t>(now.tv_nsec);
  const auto host = TRY(open_host(context, "snapshot create " + request.domain));
  Operation operation = TRY(plan_create_snapshot(*host, request));
  return run_or_print(context, operation,
                      fmt::format("Snapshot '{}' of '{}' created.", operation.snapshot(), request.domain),
                      {{"domain", request.domain}, {"snapshot", operation.snapshot()}});
}

Result<ExitCode> list_snapshots(Context& context, const std::string& domain, bool as_tree) {
  const auto host = TRY(open_host(context, "snapshot list " + domain));
  const LockedDomain locked = TRY(host->open_domain(domain, DomainLock::Mode::kShared));
  const MetadataStore::Listing listing = TRY(host->metadata().list(domain));
  const SnapshotTree tree(listing.snapshots);
  for (const Error& problem : listing.problems) context.output.error(problem);
  for (const std::string& problem : tree.problems()) context.output.error(problem);
  if (context.options.json) {
    json result = json::array();
    for (const SnapshotSummary& snapshot : tree.snapshots()) result.push_back(summary_json(snapshot));
    print_json(context, result);
    return ExitCode::kDone;
  }
  if (as_tree) {
    const SnapshotSummary* current = tree.current();
    for (const std::string& line : tree.tree_lines()) {
      // A name stands at the end of its line, behind four columns for each generation before it.
      const size_t depth = current == nullptr ? 0 : tree.depth(current->name);
      const bool is_current = current != nullptr && line.ends_with(current->name) &&
                              line.size() == current->name.size() + (depth == 0 ? 0 : 4 * depth + 1);
      context.output.print(line + (is_current ? "  (current)\n" : "\n"));
    }
    return ExitCode::kDone;
  }
  TextTable table({"Name", "Creation Time", "State"});
  for (const SnapshotSummary& snapshot : tree.snapshots()) {
    table.add({snapshot.name, local_time(snapshot.creation_time), name_of(snapshot.state)}, snapshot.current);
  }
  context.output.print(table.to_string());
  return ExitCode::kDone;
}

std::string location_of(const SnapshotSummary& snapshot) {
  return snapshot.has_external_disk || snapshot.memory == SnapshotMode::kExternal ? "external" : "internal";
}

Result<ExitCode> show_snapshot(Context& context, const std::string& domain, const std::string& name, bool xml) {
  const auto host = TRY(open_host(context, "snapshot show " + domain));
  const LockedDomain locked = TRY(host->open_domain(domain, DomainLock::Mode::kShared));
  const SnapshotDocument document = TRY(host->metadata().load(domain, name));
  if (xml && !context.options.json) {
    context.output.print(document.to_xml());
    return ExitCode::kDone;
  }
  const auto [children, descendants] = TRY(host->metadata().offspring(domain, name));
  const SnapshotSummary summary = document.summary();
  if (context.options.json) {
    json result = summary_json(summary);
    result["domain"] = domain;
    result["location"] = location_of(summary);
    result["children"] = children;
    result["descendants"] = descendants;
    result["disks"] = json::array();
    for (const SnapshotDisk& disk : document.disks()) {
      result["disks"].push_back({{"target", disk.name}, {"mode", name_of(disk.mode)}});
    }
    if (xml) result["xml"] = document.to_xml();
    print_json(context, result);
    return ExitCode::kDone;
  }
  std::string text;
  const auto line = [&](const char* key, const std::string& value) {
    text += fmt::format("{:<15} {}\n", key, visible(value));
  };
  line("Name:", name);
  line("Domain:", domain);
  line("Current:", summary.current ? "yes" : "no");
  line("State:", name_of(summary.state));
  line("Location:", location_of(summary));
  line("Creation Time:", local_time(summary.creation_time));
  line("Parent:", summary.parent.empty() ? "-" : summary.parent);
  line("Children:", std::to_string(children.size()));
  line("Descendants:", std::to_string(descendants));
  std::string disks;
  for (const SnapshotDisk& disk : document.disks()) {
    disks += fmt::format("{}{}={}", disks.empty() ? "" : ", ", disk.name, name_of(disk.mode));
  }
  if (!disks.empty()) line("Disks:", disks);
  if (!summary.description.empty()) line("Description:", summary.description);
  context.output.print(text);
  return ExitCode::kDone;
}

Result<ExitCode> edit_snapshot(Context& context, const EditSnapshotRequest& request) {
  const auto host = TRY(open_host(context, "snapshot edit " + request.domain));
  Operation operation = TRY(plan_edit_snapshot(*host, request));
  return run_or_print(context, operation,
                      fmt::format("Snapshot '{}' of '{}' changed.", operation.snapshot(), request.domain),
                      {{"domain", request.domain}, {"snapshot", operation.snapshot()}});
}

Result<ExitCode> revert_snapshot(Context& context, RevertSnapshotRequest request) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  request.now_sec = static_cast<uint64_t>(now.tv_sec);
  request.now_nsec = static_cast<uint32_t>(now.tv_nsec);
  const auto host = TRY(open_host(context, "snapshot revert " + request.domain));
  RevertSnapshot revert = TRY(plan_revert_snapshot(*host, request));
  if (!request.safety && !confirm(context, fmt::format("Throw away what '{}' holds now?", request.domain))) {
    return make_error(ErrorKind::kInterrupted, "nothing was changed");
  }
  std::string done = fmt::format("'{}' is back at snapshot '{}'.", request.domain, request.name);
  if (!revert.safety_name.empty()) {
    done += fmt::format("\n  What it held until now is kept in '{}' until the next revert.", revert.safety_name);
  }
  return run_or_print(context, revert.operation, done,
                      {{"domain", request.domain},
                       {"snapshot", request.name},
                       {"safety", revert.safety_name.empty() ? json() : json(revert.safety_name)}});
}

Result<ExitCode> delete_snapshot(Context& context, const DeleteSnapshotRequest& request) {
  const auto host = TRY(open_host(context, "snapshot delete " + request.domain));
  Operation operation = TRY(plan_delete_snapshot(*host, request));
  return run_or_print(context, operation, fmt::format("Snapshot '{}' of '{}' deleted.", request.name, request.domain),
                      {{"domain", request.domain}, {"snapshot", request.name}});
}

void add_create(CLI::App& snapshot, Context& context) {
  CLI::App* create = snapshot.add_subcommand("create", "Take a snapshot");
  struct Arguments {
    CreateSnapshotRequest request;
    std::vector<std::string> disks;
    std::string mode = "internal";
    bool memory = false;
    bool disk_only = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CreateSnapshotRequest& request = arguments->request;
  create->add_option("VM", request.domain)->required();
  create->add_option("NAME", request.name, "The time in seconds since 1970 where it is not said");
  create->add_option("--description", request.description, "What it is for")->type_name("TEXT");
  create
      ->add_option("--mode", arguments->mode,
                   "How it is kept: internal, inside of the images; external, below new overlays, and memory in a file")
      ->check(CLI::IsMember({"internal", "external"}));
  create->add_option("--disk", arguments->disks, "Leaves a disk out, takes one that would be left out, or says how")
      ->type_name("TARGET=internal|external|no")
      ->expected(1)
      ->take_all();
  CLI::Option* memory = create->add_flag("--memory", arguments->memory,
                                         "With the memory of the running machine, which is the default; refused where "
                                         "that can't be");
  create->add_flag("--disk-only", arguments->disk_only, "Without the memory of the running machine")->excludes(memory);
  create->add_option("--memory-file", request.memory_file, "Where the memory goes, with --mode external")
      ->type_name("FILE");
  create->add_flag("--live", request.live, "Let the machine go on while its memory is written, with --mode external");
  create->add_flag("--quiesce", request.quiesce,
                   "Have the guest agent freeze its file systems meanwhile, with --disk-only");
  create
      ->add_option("--quiesce-seconds", request.quiesce_seconds,
                   "They are thawed after that time, whatever happens (30)")
      ->type_name("SECONDS")
      ->check(CLI::Range(1, 3600));
  create->callback([&context, arguments] {
    context.action = [&context, arguments] {
      CreateSnapshotRequest wanted = arguments->request;
      if (arguments->mode == "external") wanted.mode = SnapshotMode::kExternal;
      if (arguments->memory) wanted.memory = SnapshotMemoryWish::kWanted;
      if (arguments->disk_only) wanted.memory = SnapshotMemoryWish::kDiskOnly;
      return create_snapshot(context, std::move(wanted), arguments->disks);
    };
  });
}

void add_revert(CLI::App& snapshot, Context& context) {
  CLI::App* revert = snapshot.add_subcommand("revert", "Go back to a snapshot");
  struct Arguments {
    RevertSnapshotRequest request;
    std::vector<std::string> disks;
    bool no_safety = false;
    bool running = false;
    bool paused = false;
  };
  auto arguments = std::make_shared<Arguments>();
  revert->add_option("VM", arguments->request.domain)->required();
  revert->add_option("NAME", arguments->request.name)->required();
  revert->add_option("--disk", arguments->disks, "Only this disk, and not the definition")
      ->type_name("TARGET")
      ->expected(1)
      ->take_all();
  revert->add_flag("--no-safety", arguments->no_safety, "Don't keep the present state in a snapshot of its own");
  CLI::Option* running = revert->add_flag("--running", arguments->running, "Let the machine run afterwards");
  revert->add_flag("--paused", arguments->paused, "Leave the machine paused afterwards")->excludes(running);
  revert->callback([&context, arguments] {
    context.action = [&context, arguments] {
      arguments->request.disks = {arguments->disks.begin(), arguments->disks.end()};
      arguments->request.safety = !arguments->no_safety;
      if (arguments->running) arguments->request.after = AfterRevert::kRunning;
      if (arguments->paused) arguments->request.after = AfterRevert::kPaused;
      return revert_snapshot(context, arguments->request);
    };
  });
}

void add_edit(CLI::App& snapshot, Context& context) {
  CLI::App* edit = snapshot.add_subcommand("edit", "Rename or describe a snapshot");
  auto request = std::make_shared<EditSnapshotRequest>();
  edit->add_option("VM", request->domain)->required();
  edit->add_option("NAME", request->name)->required();
  edit->add_option("--name", request->new_name, "Its new name, in the metadata and in every image")->type_name("NEW");
  edit->add_option("--description", request->description, "Its new description; empty for none")->type_name("TEXT");
  edit->callback(
      [&context, request] { context.action = [&context, request] { return edit_snapshot(context, *request); }; });
}

void add_delete(CLI::App& snapshot, Context& context) {
  CLI::App* remove = snapshot.add_subcommand("delete", "Delete a snapshot and give its space back");
  auto request = std::make_shared<DeleteSnapshotRequest>();
  remove->add_option("VM", request->domain)->required();
  remove->add_option("NAME", request->name)->required();
  remove->add_flag("--children", request->children, "And all that descend from it");
  remove->add_flag("--metadata-only", request->metadata_only, "Forget it, and leave the images as they are");
  remove->callback(
      [&context, request] { context.action = [&context, request] { return delete_snapshot(context, *request); }; });
}

}  // namespace

void add_snapshot_commands(CLI::App& app, Context& context) {
  CLI::App* snapshot = app.add_subcommand("snapshot", "Snapshots of a domain");
  snapshot->require_subcommand(1);
  add_create(*snapshot, context);

  CLI::App* list = snapshot->add_subcommand("list", "List the snapshots of a domain; '*' marks the current one");
  auto domain = std::make_shared<std::string>();
  auto tree = std::make_shared<bool>(false);
  list->add_option("VM", *domain)->required();
  list->add_flag("--tree", *tree, "As a tree");
  list->callback([&context, domain, tree] {
    context.action = [&context, domain, tree] { return list_snapshots(context, *domain, *tree); };
  });

  CLI::App* show = snapshot->add_subcommand("show", "Show a snapshot");
  auto name = std::make_shared<std::pair<std::string, std::string>>();
  auto xml = std::make_shared<bool>(false);
  show->add_option("VM", name->first)->required();
  show->add_option("NAME", name->second)->required();
  show->add_flag("--xml", *xml, "Its metadata, as virsh snapshot-dumpxml prints it");
  show->callback([&context, name, xml] {
    context.action = [&context, name, xml] { return show_snapshot(context, name->first, name->second, *xml); };
  });

  add_edit(*snapshot, context);
  add_revert(*snapshot, context);
  add_delete(*snapshot, context);
  add_snapshot_space(*snapshot, context);
  add_snapshot_diff(*snapshot, context);
  add_snapshot_serve(*snapshot, context);
  add_snapshot_extract(*snapshot, context);
  add_snapshot_files(*snapshot, context);
  add_snapshot_mount(*snapshot, context);
}

}  // namespace varve::cli
