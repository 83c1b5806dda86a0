#include "cli/local_host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/plan_text.h"
#include "host/directory_host.h"
#include "transfer/manifest.h"
#ifdef VARVE_WITH_LIBVIRT
#include "libvirt/libvirt_host.h"
#endif

namespace varve::cli {

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

HostEvents events_for(Context& context, const std::string& command) {
  HostEvents events;
  events.command = command;
  events.waiting = [&context](const std::string& domain, const std::string& holder) {
    if (!context.options.quiet) context.output.error(fmt::format("waiting for {}, which has '{}'", holder, domain));
  };
  events.recovered = [&context](const Recovery& recovery) {
    std::string text = recovery.message;
    for (const std::string& note : recovery.notes) text += "\n  " + note;
    context.output.error(text);
  };
  events.not_recovered = [&context](const Error& error) { context.output.error(error); };
  return events;
}

// $NAME, or what it is where nobody says otherwise (XDG Base Directory Specification).
std::string user_directory(const char* name, const char* below_home) {
  std::string said = environment(name);
  if (!said.empty() || environment("HOME").empty()) return said;
  return environment("HOME") + below_home;
}

#ifdef VARVE_WITH_LIBVIRT
Result<std::unique_ptr<Host>> open_libvirt_host(const HostChoice& choice, HostEvents events) {
  // The way there may be a program (ssh). That it has ended is an error to be told, and not our end.
  std::signal(SIGPIPE, SIG_IGN);
  return libvirt::open_host(choice.uri,
                            {.configuration = user_directory("XDG_CONFIG_HOME", "/.config"),
                             .data = user_directory("XDG_DATA_HOME", "/.local/share"),
                             .state = user_directory("XDG_STATE_HOME", "/.local/state"),
                             .is_root = ::geteuid() == 0},
                            std::move(events));
}
#else
Result<std::unique_ptr<Host>> open_libvirt_host(const HostChoice& choice, HostEvents) {
  return make_error(ErrorKind::kUnsupported, fmt::format("the host {} ({}) is a libvirtd's, and this varve was built "
                                                         "without libvirt",
                                                         choice.uri, choice.reason))
      .with_note("-c dir:ROOT names a directory in libvirt's layout; `varve host` says which host is chosen, and why");
}
#endif

}  // namespace

Result<HostChoice> choose_host_for(const Context& context) {
  HostQuery query;
  query.option = context.options.uri;
  if (const char* uri = std::getenv("VARVE_URI"); uri != nullptr && *uri != '\0') query.environment = uri;
  query.is_root = ::geteuid() == 0;
  query.data_home = user_directory("XDG_DATA_HOME", "/.local/share");
  query.runtime_directory = environment("XDG_RUNTIME_DIR");
  return choose_host(query);
}

namespace {

Result<std::unique_ptr<Host>> open_chosen(Context& context, const HostChoice& choice, const std::string& command,
                                          IfMissing if_missing) {
  if (choice.kind == HostKind::kLibvirt) return open_libvirt_host(choice, events_for(context, command));
  std::string root = choice.root;
  if (!root.starts_with('/')) {
    char directory[4096];
    if (::getcwd(directory, sizeof directory) == nullptr) {
      return system_error(errno, "can't find out the working directory");
    }
    root = fmt::format("{}/{}", directory, root);
  }
  HostEvents events = events_for(context, command);
  if (if_missing == IfMissing::kCreate && !context.options.dry_run) {
    return DirectoryHost::open_or_create(root, std::move(events));
  }
  auto host = DirectoryHost::open(root, std::move(events));
  if (!host && host.error().kind == ErrorKind::kNotFound) {
    if (if_missing == IfMissing::kCreate) {
      return make_error(ErrorKind::kNotFound, fmt::format("the host {} does not exist yet", choice.uri))
          .with_note(
              fmt::format("a dry run makes no directory: `mkdir -p '{}'`, and it tells what would be done", root));
    }
    return make_error(ErrorKind::kNotFound, fmt::format("the host {} does not exist", choice.uri))
        .with_note(fmt::format("it was chosen {}; `varve vm create` and `varve vm define` make it", choice.reason));
  }
  return host;
}

}  // namespace

Result<std::unique_ptr<Host>> open_host(Context& context, const std::string& command, IfMissing if_missing) {
  return open_chosen(context, TRY(choose_host_for(context)), command, if_missing);
}

Result<std::unique_ptr<Host>> open_host_at(Context& context, const std::string& uri, const std::string& command,
                                           IfMissing if_missing) {
  HostQuery query;
  query.option = uri;
  return open_chosen(context, TRY(choose_host(query)), command, if_missing);
}

Result<ExitCode> run_or_print(Context& context, Operation& operation, const std::string& done, nlohmann::json result) {
  TRY(operation.check());
  if (operation.layout().resolve(fmt::format("/{}{}", operation.domain(), kManifestSuffix))) {
    operation.plan().notes.push_back(
        fmt::format("'{}' is an export here: what is changed in it can't be imported any more, nor an incremental "
                    "export that stands on it",
                    operation.domain()));
  }
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, operation.plan());
    return ExitCode::kDone;
  }
  {
    // Stops what can be stopped; everything else is short.
    std::optional<InterruptWatch> interrupts;
    if (operation.is_delegated()) interrupts.emplace();
    ProgressBar bar(operation.plan().title, !context.options.quiet && !context.options.json);
    TRY(operation.run({.progress = [&](uint64_t at, uint64_t total) { bar.update(at, total); },
                       .cancelled = [] { return interrupted(); }}));
  }
  if (context.options.json) {
    result["notes"] = operation.plan().notes;
    print_json(context, result);
    return ExitCode::kDone;
  }
  if (context.options.quiet) return ExitCode::kDone;
  context.output.print(done + "\n");
  for (const std::string& note : operation.plan().notes) context.output.note(fmt::format("  note: {}\n", note));
  return ExitCode::kDone;
}

bool confirm(Context& context, const std::string& question) {
  if (context.options.yes || context.options.dry_run || ::isatty(STDIN_FILENO) != 1) return true;
  context.output.note(question + " [y/N] ");
  const int answer = std::getchar();
  return answer == 'y' || answer == 'Y';
}

void print_json(Context& context, const nlohmann::json& json) {
  // Names come from files that may hold anything: bytes that are no UTF-8 are replaced rather than thrown about.
  context.output.print(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

std::string local_time(int64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  if (::localtime_r(&time, &parts) == nullptr) return std::to_string(seconds);
  char buffer[64];
  const size_t length = std::strftime(buffer, sizeof buffer, "%Y-%m-%d %H:%M:%S %z", &parts);
  return std::string(buffer, length);
}

}  // namespace varve::cli
