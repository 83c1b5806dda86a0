#include "cli/vm_recover.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/command.h"
#include "cli/local_host.h"
#include "cli/plan_text.h"
#include "inspect/verify.h"
#include "operation/recover_domain.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct Request {
  std::string domain;  // empty: all that there are
  std::string from;    // URI; empty: the host's own files
};

// What somebody may want back: what is defined there, and what has snapshots there.
Result<std::set<std::string>> domains_in(const RecoverySource& source) {
  std::set<std::string> names;
  for (std::string& name : TRY(source.definitions.names())) names.insert(std::move(name));
  for (std::string& name : TRY(source.metadata.domains())) names.insert(std::move(name));
  return names;
}

std::string text_of(const std::string& domain, const RecoverDomain& recover) {
  std::string text = fmt::format("{}: ", visible(domain));
  if (!recover.is_needed()) return text + "nothing was lost\n";
  std::vector<std::string> parts;
  if (recover.defines) parts.emplace_back("defined");
  if (!recover.put_back.empty()) {
    parts.push_back(fmt::format("{} snapshot{} put back: {}", recover.put_back.size(),
                                recover.put_back.size() == 1 ? "" : "s", list_of(recover.put_back)));
  }
  if (!recover.adopted.empty()) {
    parts.push_back(
        fmt::format("{} adopted that no metadata knew: {}", recover.adopted.size(), list_of(recover.adopted)));
  }
  return text + visible(fmt::format("{}", fmt::join(parts, "; "))) + "\n";
}

// False where something is wrong with it still.
Result<bool> recover_one(Context& context, Host& host, const RecoverySource& source, const std::string& domain,
                         json& result) {
  RecoverDomain recover =
      TRY(plan_recover_domain(host, source, {.domain = domain, .now_sec = static_cast<uint64_t>(std::time(nullptr))}));
  if (recover.is_needed()) TRY(recover.operation.check());
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, recover.operation.plan());
    return true;
  }
  if (recover.is_needed()) TRY(recover.operation.run());
  const Plan plan = recover.operation.plan();
  const std::string text = text_of(domain, recover);
  const bool defines = recover.defines;
  result.push_back({{"domain", domain},
                    {"defined", defines},
                    {"put_back", recover.put_back},
                    {"adopted", recover.adopted},
                    {"notes", plan.notes}});
  {
    const RecoverDomain done = std::move(recover);
  }  // its lock, too
  if (!context.options.json && !context.options.quiet) {
    context.output.print(text);
    for (const std::string& note : plan.notes) context.output.note(fmt::format("  note: {}\n", note));
  }
  const Examination examination = TRY(verify_domain(host, domain));
  bool is_sound = true;
  json findings = json::array();
  for (const Finding& finding : examination.findings) {
    if (finding.severity == Severity::kNote) continue;
    is_sound = is_sound && finding.severity != Severity::kError;
    findings.push_back(finding.message);
    if (context.options.json) continue;
    context.output.print(
        visible(fmt::format("  {:<8} {}{}\n", name_of(finding.severity),
                            finding.snapshot.empty() ? "" : "snapshot '" + finding.snapshot + "': ", finding.message)));
  }
  result.back()["findings"] = std::move(findings);
  return is_sound;
}

Result<ExitCode> recover(Context& context, const Request& request) {
  const auto host = TRY(open_host(context, "vm recover", request.from.empty() ? IfMissing::kFail : IfMissing::kCreate));
  std::unique_ptr<Host> other;
  if (!request.from.empty()) other = TRY(open_host_at(context, request.from, "vm recover"));
  // A libvirtd shows the passwords of displays only to who may change something.
  if (other && other->machines() != nullptr) TRY(other->check_writable());
  const DefinitionFiles own_definitions(host->layout());
  const MetadataFiles own_metadata(host->layout());
  const RecoverySource source = other ? RecoverySource{other->definitions(), other->metadata(), other->layout()}
                                      : RecoverySource{own_definitions, own_metadata, host->layout()};
  std::set<std::string> domains;
  if (request.domain.empty()) {
    domains = TRY(domains_in(source));
  } else {
    domains.insert(request.domain);
  }
  json result = json::array();
  bool all_sound = true;
  for (const std::string& domain : domains) {
    const auto sound = recover_one(context, *host, source, domain, result);
    if (!sound && domains.size() == 1) return sound.error();
    if (!sound) context.output.error(sound.error());
    all_sound = all_sound && sound && *sound;
  }
  if (context.options.json && !context.options.dry_run) print_json(context, result);
  return all_sound ? ExitCode::kDone : ExitCode::kFailed;
}

}  // namespace

void add_vm_recover(CLI::App& vm, Context& context) {
  CLI::App* command = vm.add_subcommand(
      "recover",
      "Put back what the host has lost of a domain: definition, snapshots, and metadata for what is in images");
  auto request = std::make_shared<Request>();
  command->add_option("VM", request->domain, "All that there are, where it is not said");
  command->add_option("--from", request->from, "The host that still has it, e.g. dir:/mnt/old")->type_name("URI");
  command->callback(
      [&context, request] { context.action = [&context, request] { return recover(context, *request); }; });
}

}  // namespace varve::cli
