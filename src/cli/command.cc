#include "cli/command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>

#include "cli/image_command.h"
#include "cli/version.h"

namespace varve::cli {

namespace {

using AddNoun = void (*)(CLI::App&, Context&);

// In the order of the help text.
constexpr std::initializer_list<AddNoun> kNouns = {add_host_commands, add_vm_commands, add_snapshot_commands,
                                                   add_where_commands, add_verify_commands};

int finish(Output& output, int code) {
  if (output.finish() || code != 0) return code;
  output.error("not everything was printed: standard output can't be written");
  return static_cast<int>(ExitCode::kFailed);
}

int finish(Context& context, ExitCode code) {
  return finish(context.output, static_cast<int>(code));
}

// Where `image` stands, if it is the noun: its arguments are qemu-img's, which CLI11 can't spell.
std::optional<size_t> position_of_image(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "image") return i;
    if (!arguments[i].starts_with('-')) return std::nullopt;
    if (arguments[i] == "-c" || arguments[i] == "--connect") ++i;
  }
  return std::nullopt;
}

int run_action(Context& context) {
  Result<ExitCode> result = context.action();
  if (!result) {
    context.output.error(result.error());
    return finish(context, exit_code_of(result.error().kind));
  }
  return finish(context, *result);
}

// CLI11 says of an unknown noun or verb only that one is required.
Error usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  std::string line = "varve";
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    line += " " + command->get_name();
  }
  std::string message = error.what();
  const std::vector<std::string> unknown = app.remaining(true);  // fallthrough leaves them with the parents
  if (error.get_name() == "RequiredError" && !unknown.empty() && !command->get_subcommands({}).empty()) {
    message = fmt::format("{} has no command '{}'", line, unknown.front());
  }
  return make_error(ErrorKind::kInvalidArgument, message)
      .with_note(fmt::format("`{} --help` says what it takes", line));
}

}  // namespace

int run_as_qemu_img(const std::vector<std::string>& arguments) {
  Output output("qemu-img");
  return finish(output, run_image_command(output, arguments, false));
}

int run_command(const std::vector<std::string>& arguments) {
  Context context("varve");
  const std::optional<size_t> image = position_of_image(arguments);
  // With nothing of ours before it there is nothing to parse, and that would be a fifth of a short command's time.
  if (image == 0) {
    return finish(context.output, run_image_command(context.output, {arguments.begin() + 1, arguments.end()}, false));
  }
  CLI::App app("Snapshots of KVM/QEMU virtual machines", "varve");
  app.set_version_flag("--version", version_text(), "Print the version and which optional parts are in");
  app.set_help_all_flag("--help-all", "Print the help of every command");
  app.add_option("-c,--connect", context.options.uri, "The host: dir:ROOT, qemu:///system, qemu+ssh://…")
      ->type_name("URI");
  app.add_flag("--json", context.options.json, "Print JSON");
  app.add_flag("-q,--quiet", context.options.quiet, "Print errors only");
  app.add_flag("-y,--yes", context.options.yes, "Don't ask");
  app.add_flag("--dry-run", context.options.dry_run, "Print what would be done, and do nothing");
  app.require_subcommand(1);
  app.fallthrough();  // global options may also stand behind the verb
  for (const AddNoun add : kNouns) add(app, context);
  app.add_subcommand("image", "Disk images: create, info, convert, commit, rebase and more, spelled as qemu-img's");

  const auto ours_end = arguments.begin() + static_cast<ptrdiff_t>(image ? *image + 1 : arguments.size());
  try {
    std::vector<std::string> ours(arguments.begin(), ours_end);
    std::reverse(ours.begin(), ours.end());  // as CLI11 wants them
    app.parse(ours);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {  // --help, --version
      app.exit(error);
      return finish(context, ExitCode::kDone);
    }
    context.output.error(usage_error(app, error));
    return finish(context, ExitCode::kUsage);
  }
  if (image)
    return finish(context.output, run_image_command(context.output, {ours_end, arguments.end()}, context.options.json,
                                                    context.options.dry_run));
  CHECK(context.action);
  return run_action(context);
}

}  // namespace varve::cli
