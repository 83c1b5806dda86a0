// How a noun joins the command: its file defines one function that adds its verbs to the parser, and command.cc's table
// names it. A verb does not run while arguments are parsed: its callback stores the action, and main runs it.
//
//   void add_vm_commands(CLI::App& app, Context& context) {
//     CLI::App* vm = app.add_subcommand("vm", "Virtual machines");
//     vm->require_subcommand(1);
//     CLI::App* show = vm->add_subcommand("show", "…");
//     auto name = std::make_shared<std::string>();
//     show->add_option("VM", *name)->required();
//     show->callback([&context, name] { context.action = [&context, name] { return show_vm(context, *name); }; });
//   }
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/exit_code.h"
#include "cli/output.h"

namespace CLI {
class App;
}

namespace varve::cli {

// The options that stand before the noun and mean the same for all of them.
struct GlobalOptions {
  std::optional<std::string> uri;  // -c
  bool json = false;
  bool quiet = false;
  bool yes = false;
  bool dry_run = false;
};

struct Context {
  explicit Context(std::string program) : output(std::move(program)) {}
  Output output;
  GlobalOptions options;
  // Set by the callback of the verb that was given. Errors are printed and mapped to exit codes by run_command.
  std::function<Result<ExitCode>()> action;
};

// Each in its own file (NOUN_command.cc).
void add_host_commands(CLI::App& app, Context& context);
void add_snapshot_commands(CLI::App& app, Context& context);
void add_vm_commands(CLI::App& app, Context& context);
void add_verify_commands(CLI::App& app, Context& context);
void add_where_commands(CLI::App& app, Context& context);

// The whole command: parses `arguments` (without argv[0]), runs the verb, and returns the exit code.
int run_command(const std::vector<std::string>& arguments);
// The same, called through a link named `qemu-img`.
int run_as_qemu_img(const std::vector<std::string>& arguments);

}  // namespace varve::cli
