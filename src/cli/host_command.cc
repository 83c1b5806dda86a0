// `varve host`: which host the commands work on, and why.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/local_host.h"

namespace varve::cli {

namespace {

Result<ExitCode> show_host(Context& context) {
  const HostChoice choice = TRY(choose_host_for(context));
  const bool is_directory = choice.kind == HostKind::kDirectory;
  nlohmann::json json = {
      {"uri", choice.uri}, {"kind", is_directory ? "dir" : "libvirt"}, {"reason", choice.reason}, {"supported", true}};
  std::string text = fmt::format("{}\n  chosen {}\n", choice.uri, choice.reason);
  auto host = open_host(context, "host");
  json["exists"] = host.has_value();
  if (!host) {
    if (is_directory && host.error().kind != ErrorKind::kNotFound) return std::move(host).error();
    if (is_directory) {
      text += "  does not exist yet; `varve vm create` and `varve vm define` make it\n";
    } else {
      json["problem"] = host.error().message;
      text += fmt::format("  {}\n", visible(host.error().message));
      for (const std::string& note : host.error().notes) text += fmt::format("  {}\n", visible(note));
    }
  } else {
    const auto names = TRY((*host)->definitions().names());
    json["domains"] = names.size();
    json["images"] = (*host)->layout().shown((*host)->images_directory());
    text += fmt::format("  {} domain{}, images in {}\n", names.size(), names.size() == 1 ? "" : "s",
                        (*host)->layout().shown((*host)->images_directory()));
    const auto writable = (*host)->check_writable();
    json["writable"] = writable.has_value();
    if (!writable) text += fmt::format("  for looking only: {}\n", writable.error().message);
  }
  if (context.options.json) {
    print_json(context, json);
  } else {
    context.output.print(text);
  }
  return ExitCode::kDone;
}

}  // namespace

void add_host_commands(CLI::App& app, Context& context) {
  CLI::App* host = app.add_subcommand("host", "Show which host the commands work on, and why");
  host->callback([&context] { context.action = [&context] { return show_host(context); }; });
}

}  // namespace varve::cli
