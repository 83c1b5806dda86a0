// `varve vm …`: the domains of a host.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/units.h"
#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/new_disk_argument.h"
#include "cli/text_table.h"
#include "cli/vm_recover.h"
#include "cli/vm_transfer.h"
#include "domain/xml.h"
#include "operation/create_domain.h"
#include "operation/define_domain.h"
#include "operation/undefine_domain.h"

namespace varve::cli {

namespace {

using nlohmann::json;

std::string state_json(DomainState state) {
  return state == DomainState::kShutOff ? "shutoff" : name_of(state);
}

Result<ExitCode> list_domains(Context& context) {
  const auto host = TRY(open_host(context, "vm list"));
  const DefinitionStore::Listing listing = TRY(host->definitions().list());
  json result = json::array();
  TextTable table({"Name", "State", "Disks", "Snapshots", "Current"});
  for (const DomainDocument& domain : listing.domains) {
    const auto state = host->state(domain.name());
    if (!state && state.error().kind == ErrorKind::kNotFound) continue;  // gone since the list was made
    if (!state) return state.error();
    const auto [count, current] = TRY(host->metadata().overview(domain.name()));
    table.add({domain.name(), name_of(*state), std::to_string(domain.disks().size()), std::to_string(count),
               current.empty() ? "-" : current});
    result.push_back({{"name", domain.name()},
                      {"uuid", domain.uuid()},
                      {"state", state_json(*state)},
                      {"disks", domain.disks().size()},
                      {"snapshots", count},
                      {"current", current.empty() ? json() : json(current)}});
  }
  for (const Error& problem : listing.problems) context.output.error(problem);
  if (context.options.json) {
    print_json(context, result);
  } else {
    context.output.print(table.to_string());
  }
  return ExitCode::kDone;
}

json disk_json(const Disk& disk, const Layout& layout) {
  return {{"target", disk.target},
          {"device", name_of(disk.device)},
          {"format", disk.format},
          {"source_type", name_of(disk.source_type)},
          {"source", disk.source},
          {"host_path", disk.is_local_file() && !disk.source.empty() ? json(layout.shown(disk.source)) : json()},
          {"readonly", disk.readonly},
          {"in_snapshots", disk.in_snapshots_by_default()}};
}

Result<ExitCode> show_domain(Context& context, const std::string& name, bool xml) {
  const auto host = TRY(open_host(context, "vm show " + name));
  const LockedDomain domain = TRY(host->open_domain(name, DomainLock::Mode::kShared));
  const DomainDocument& definition = domain.definition;
  if (xml && !context.options.json) {
    context.output.print(definition.to_xml());
    return ExitCode::kDone;
  }
  const auto [count, current] = TRY(host->metadata().overview(name));
  const DomainState state = TRY(host->state(name));
  const auto memory = definition.memory_bytes();
  if (context.options.json) {
    json disks = json::array();
    for (const Disk& disk : definition.disks()) disks.push_back(disk_json(disk, host->layout()));
    json result = {{"name", name},
                   {"uuid", definition.uuid()},
                   {"title", definition.title()},
                   {"description", definition.description()},
                   {"state", state_json(state)},
                   {"type", definition.type()},
                   {"machine", definition.machine()},
                   {"memory_bytes", memory ? json(*memory) : json()},
                   {"vcpus", definition.vcpus()},
                   {"disks", disks},
                   {"nvram", definition.nvram_path() ? json(*definition.nvram_path()) : json()},
                   {"definition", host->layout().shown(Layout::definition(name))},
                   {"snapshots", count},
                   {"current", current.empty() ? json() : json(current)}};
    if (xml) result["xml"] = definition.to_xml();
    print_json(context, result);
    return ExitCode::kDone;
  }
  std::string text = fmt::format("{:<13} {}\n{:<13} {}\n", "Name:", name, "UUID:", definition.uuid());
  if (!definition.title().empty()) text += fmt::format("{:<13} {}\n", "Title:", visible(definition.title()));
  text += fmt::format("{:<13} {}\n", "State:", name_of(state));
  text += fmt::format("{:<13} {} {}\n", "Machine:", visible(definition.type()), visible(definition.machine()));
  if (memory) text += fmt::format("{:<13} {}\n", "Memory:", format_size(*memory));
  text += fmt::format("{:<13} {}\n", "vCPUs:", definition.vcpus());
  for (const Disk& disk : definition.disks()) {
    text += fmt::format(
        "{:<13} {}{}{}\n", fmt::format("Disk {}:", visible(disk.target)),
        disk.source.empty() ? "empty" : visible(disk.is_local_file() ? host->layout().shown(disk.source) : disk.source),
        disk.format.empty() ? "" : fmt::format(" ({})", visible(disk.format)),
        disk.in_snapshots_by_default() ? "" : ", not part of snapshots");
  }
  text += fmt::format("{:<13} {}\n", "Definition:", host->layout().shown(Layout::definition(name)));
  text +=
      fmt::format("{:<13} {}{}\n", "Snapshots:", count, current.empty() ? "" : fmt::format(", current: {}", current));
  context.output.print(text);
  return ExitCode::kDone;
}

Result<ExitCode> define_domain(Context& context, const std::string& file) {
  const std::string text = TRY(read_file(file, xml::kMaxDocumentSize));
  // What can't be a definition makes no host.
  TRY(DomainDocument::parse(text, file));
  const auto host = TRY(open_host(context, "vm define " + file, IfMissing::kCreate));
  SchemaSet schemas;
  Operation operation = TRY(plan_define_domain(*host, text, file, schemas));
  return run_or_print(context, operation, fmt::format("Domain '{}' defined.", operation.domain()),
                      {{"domain", operation.domain()}});
}

Result<ExitCode> undefine_domain(Context& context, const UndefineDomainRequest& request) {
  const auto host = TRY(open_host(context, "vm undefine " + request.domain));
  Operation operation = TRY(plan_undefine_domain(*host, request));
  if (request.storage && !confirm(context, fmt::format("Remove '{}' with its disks?", request.domain))) {
    return make_error(ErrorKind::kInterrupted, "nothing was changed");
  }
  return run_or_print(context, operation, fmt::format("Domain '{}' undefined.", request.domain),
                      {{"domain", request.domain}});
}

Result<ExitCode> create_domain(Context& context, CreateDomainRequest request, const std::string& memory,
                               const std::vector<std::string>& disks) {
  request.memory_bytes = TRY(parse_size(memory));
  for (const std::string& disk : disks) request.disks.push_back(TRY(parse_new_disk(disk)));
  const auto host = TRY(open_host(context, "vm create " + request.name, IfMissing::kCreate));
  Operation operation = TRY(plan_create_domain(*host, request));
  return run_or_print(context, operation, fmt::format("Domain '{}' created.", request.name),
                      {{"domain", request.name}});
}

void add_create(CLI::App& vm, Context& context) {
  CLI::App* create = vm.add_subcommand("create", "Make a domain with new disks");
  struct Arguments {
    CreateDomainRequest request;
    std::string memory = "1G";
    std::vector<std::string> disks;
  };
  auto arguments = std::make_shared<Arguments>();
  create->add_option("NAME", arguments->request.name, "What it is called")->required();
  create
      ->add_option("--disk", arguments->disks,
                   "A new disk of SIZE, e.g. 20G or 20G,format=raw; more of the kind: cluster_size=SIZE, "
                   "preallocation=off|metadata, path=PATH. Or an image that is there: PATH,format=qcow2")
      ->type_name("SIZE[,OPTION=VALUE]…")
      ->expected(1)
      ->take_all();
  create->add_option("--memory", arguments->memory, "1G where it is not said")->type_name("SIZE");
  create->add_option("--vcpus", arguments->request.vcpus, "1 where it is not said")->check(CLI::Range(1, 4096));
  create->add_option("--type", arguments->request.type, "kvm, or qemu for one without virtualisation")
      ->check(CLI::IsMember({"kvm", "qemu"}));
  create->callback([&context, arguments] {
    context.action = [&context, arguments] {
      return create_domain(context, arguments->request, arguments->memory, arguments->disks);
    };
  });
}

}  // namespace

void add_vm_commands(CLI::App& app, Context& context) {
  CLI::App* vm = app.add_subcommand("vm", "Virtual machines (domains)");
  vm->require_subcommand(1);

  CLI::App* list = vm->add_subcommand("list", "List the domains");
  list->callback([&context] { context.action = [&context] { return list_domains(context); }; });

  CLI::App* define = vm->add_subcommand("define", "Make a domain out of domain XML, or change one");
  auto file = std::make_shared<std::string>();
  define->add_option("FILE", *file, "The XML")->required();
  define->callback([&context, file] { context.action = [&context, file] { return define_domain(context, *file); }; });

  CLI::App* show = vm->add_subcommand("show", "Show a domain");
  auto name = std::make_shared<std::string>();
  auto xml = std::make_shared<bool>(false);
  show->add_option("VM", *name)->required();
  show->add_flag("--xml", *xml, "Its definition, as virsh dumpxml prints it");
  show->callback(
      [&context, name, xml] { context.action = [&context, name, xml] { return show_domain(context, *name, *xml); }; });

  CLI::App* undefine = vm->add_subcommand("undefine", "Forget a domain");
  auto request = std::make_shared<UndefineDomainRequest>();
  undefine->add_option("VM", request->domain)->required();
  undefine->add_flag("--snapshots", request->snapshots, "And its snapshots, in the images that stay too");
  undefine->add_flag("--storage", request->storage, "And the images of its disks that nobody else uses");
  undefine->callback(
      [&context, request] { context.action = [&context, request] { return undefine_domain(context, *request); }; });

  add_create(*vm, context);
  add_vm_recover(*vm, context);
  add_vm_transfer(*vm, context);
}

}  // namespace varve::cli
