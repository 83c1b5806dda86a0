// `varve verify [VM]… [--all] [--repair]`: whether everything is there that snapshots need, fit for people and for a
// monitoring system, and the mending of what can be mended.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/local_host.h"
#include "inspect/verify.h"
#include "operation/repair.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct Request {
  std::vector<std::string> domains;
  bool all = false;
  bool repair = false;
};

struct DomainReport {
  Examination examination;
  std::optional<Error> failure;  // it could not be looked at, or not be mended
};

struct Report {
  std::vector<DomainReport> domains;
  std::vector<Finding> host;
};

Verdict verdict_of(const Report& report) {
  bool critical = false;
  bool warning = false;
  bool unknown = false;
  const auto count = [&](const Finding& finding) {
    critical = critical || finding.severity == Severity::kError;
    warning = warning || finding.severity == Severity::kWarning;
    unknown = unknown || finding.severity == Severity::kUnknown;
  };
  for (const DomainReport& domain : report.domains) {
    std::ranges::for_each(domain.examination.findings, count);
    unknown = unknown || domain.failure.has_value();
  }
  std::ranges::for_each(report.host, count);
  if (critical) return Verdict::kCritical;
  if (warning) return Verdict::kWarning;
  return unknown ? Verdict::kUnknown : Verdict::kOk;
}

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kCritical:
      return "critical";
    case Verdict::kUnknown:
      return "unknown";
  }
  return "";
}

json finding_json(const Finding& finding) {
  const auto text = [](const std::string& value) { return value.empty() ? json() : json(value); };
  return {{"kind", varve::name_of(finding.kind)},
          {"severity", varve::name_of(finding.severity)},
          {"domain", text(finding.domain)},
          {"snapshot", text(finding.snapshot)},
          {"disks", finding.disks},
          {"path", text(finding.path)},
          {"message", finding.message},
          {"remedy", text(finding.remedy)},
          {"repairable", finding.is_repairable}};
}

json report_json(const Report& report) {
  json domains = json::array();
  for (const DomainReport& domain : report.domains) {
    json findings = json::array();
    for (const Finding& finding : domain.examination.findings) findings.push_back(finding_json(finding));
    domains.push_back({{"domain", domain.examination.domain},
                       {"snapshots", domain.examination.snapshots},
                       {"images", domain.examination.images},
                       {"findings", std::move(findings)},
                       {"failure", domain.failure ? json(domain.failure->message) : json()}});
  }
  json host = json::array();
  for (const Finding& finding : report.host) host.push_back(finding_json(finding));
  return {{"status", name_of(verdict_of(report))}, {"domains", std::move(domains)}, {"host", std::move(host)}};
}

std::string count_of(size_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

std::string finding_text(const Finding& finding) {
  const std::string subject = finding.snapshot.empty() ? "" : fmt::format("snapshot '{}': ", finding.snapshot);
  std::string text =
      fmt::format("  {:<8} {}{}\n", varve::name_of(finding.severity), visible(subject), visible(finding.message));
  if (!finding.remedy.empty()) text += fmt::format("  {:<8} {}\n", "", visible(finding.remedy));
  return text;
}

std::string domain_text(const DomainReport& domain, bool quiet) {
  const Examination& found = domain.examination;
  std::string text;
  if (domain.failure) {
    text = fmt::format("{}: {}\n", visible(found.domain), visible(domain.failure->message));
    for (const std::string& note : domain.failure->notes) text += fmt::format("  {}\n", visible(note));
    return text;
  }
  const auto problems =
      std::ranges::count_if(found.findings, [](const Finding& finding) { return finding.severity != Severity::kNote; });
  if (quiet && problems == 0) return "";
  text = fmt::format("{}: {}, {}: {}\n", visible(found.domain), count_of(found.images, "image"),
                     count_of(found.snapshots, "snapshot"),
                     problems == 0 ? "all is well" : count_of(static_cast<size_t>(problems), "problem"));
  for (const Finding& finding : found.findings) {
    if (!quiet || finding.severity != Severity::kNote) text += finding_text(finding);
  }
  return text;
}

Result<std::vector<std::string>> domains_of(const Host& host, const Request& request) {
  if (!request.domains.empty()) return request.domains;
  return host.definitions().names();
}

DomainReport look_at(Host& host, const std::string& domain) {
  DomainReport report;
  report.examination.domain = domain;
  ProgressBar bar("verify " + domain);
  auto found =
      verify_domain(host, domain, [&](const std::string&, uint64_t done, uint64_t total) { bar.update(done, total); });
  if (found) {
    report.examination = std::move(*found);
  } else {
    report.failure = std::move(found).error();
  }
  return report;
}

std::string numbered(const std::vector<std::string>& lines) {
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) text += fmt::format("  {}. {}\n", i + 1, visible(lines[i]));
  return text;
}

// One round of mending. False where there was nothing to mend, or it was not wanted.
Result<bool> mend(Context& context, Host& host, const std::string& domain) {
  RepairDomain repair =
      TRY(plan_repair_domain(host, {.domain = domain, .now_sec = static_cast<uint64_t>(std::time(nullptr))}));
  if (repair.mended.empty()) return false;
  TRY(repair.operation.check());
  const bool shows = !context.options.quiet && !context.options.json;
  if (shows || context.options.dry_run) {
    std::string text = fmt::format("To repair '{}':\n", visible(domain));
    text += numbered(repair.operation.plan().steps);
    context.output.note(text);
  }
  if (context.options.dry_run) return false;
  if (!confirm(context, "Do that?")) return false;
  TRY(repair.operation.run());
  return true;
}

Result<void> mend_host(Context& context, Host& host, const std::vector<Finding>& findings) {
  const std::vector<std::string> lines = describe_host_repair(host, findings);
  if (lines.empty()) return {};
  if (!context.options.quiet && !context.options.json) {
    context.output.note(fmt::format("To tidy up the host:\n{}", numbered(lines)));
  }
  if (context.options.dry_run || !confirm(context, "Do that?")) return {};
  return repair_host(host, findings);
}

Result<ExitCode> verify(Context& context, const Request& request) {
  const auto host =
      TRY(open_host(context, request.domains.size() == 1 ? "verify " + request.domains.front() : "verify"));
  // What a repair uncovers is mended in the next round: metadata that was kept aside lets go of a point.
  constexpr int kRounds = 3;
  Report report;
  for (const std::string& domain : TRY(domains_of(*host, request))) {
    DomainReport found = look_at(*host, domain);
    if (found.failure && found.failure->kind == ErrorKind::kNotFound) return std::move(*found.failure);
    const auto can_be_mended = [&] { return std::ranges::any_of(found.examination.findings, &Finding::is_repairable); };
    for (int round = 0; request.repair && round < kRounds && !found.failure && can_be_mended(); ++round) {
      if (!context.options.json) context.output.print(domain_text(found, context.options.quiet));
      const Result<bool> mended = mend(context, *host, domain);
      if (mended && !*mended) break;
      found = look_at(*host, domain);
      if (!mended) {
        found.failure = mended.error();
        break;
      }
    }
    report.domains.push_back(std::move(found));
  }
  if (request.domains.empty()) {
    report.host = TRY(verify_host(*host));
    if (request.repair) {
      TRY(mend_host(context, *host, report.host));
      report.host = TRY(verify_host(*host));
    }
  }
  if (context.options.json) {
    print_json(context, report_json(report));
    return exit_code_of(verdict_of(report));
  }
  std::string text;
  for (const DomainReport& domain : report.domains) text += domain_text(domain, context.options.quiet);
  for (const Finding& finding : report.host) {
    if (!context.options.quiet || finding.severity != Severity::kNote) text += finding_text(finding);
  }
  if (report.domains.empty() && report.host.empty() && !context.options.quiet) text = "There are no domains.\n";
  context.output.print(text);
  return exit_code_of(verdict_of(report));
}

}  // namespace

void add_verify_commands(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "verify",
      "Look whether metadata, images and what is below them fit together; ends with 0, 1 (warnings), 2 "
      "(errors) or 3 (not everything could be looked at)");
  auto request = std::make_shared<Request>();
  CLI::Option* domains = command->add_option("VM", request->domains, "Domains; none: all, and the host itself");
  command->add_flag("--all", request->all, "All domains, and the host itself")->excludes(domains);
  command->add_flag("--repair", request->repair, "Show how it would be mended, ask, and do so");
  command->callback([&context, request] {
    context.action = [&context, request]() -> Result<ExitCode> {
      Result<ExitCode> result = verify(context, *request);
      // A monitoring system takes 1 for a warning.
      if (!result && exit_code_of(result.error().kind) == ExitCode::kFailed) {
        context.output.error(result.error());
        return exit_code_of(Verdict::kUnknown);
      }
      return result;
    };
  });
}

}  // namespace varve::cli
