// `varve snapshot serve`: the disks of a snapshot as NBD exports, by nbdkit with Varve's plugin.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/units.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "cli/nbdkit.h"
#include "cli/plan_text.h"
#include "cli/snapshot_points.h"
#include "nbd/export_spec.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct ServeRequest {
  std::string domain;
  std::string name;
  std::vector<std::string> disks;
  std::string socket;  // empty: one of its own
  unsigned port = 0;   // 0: a socket
  std::string address = "localhost";
  bool overlay = false;
  std::vector<std::string> more;  // for nbdkit
};

struct ServedDisk {
  std::string target;
  std::string uri;
  uint64_t size = 0;
  bool in_use = false;  // by somebody who writes
};

// Where what clients write goes: large files belong there rather than into /tmp, which may be memory.
std::string overlay_directory() {
  const char* directory = std::getenv("TMPDIR");
  return directory == nullptr || *directory != '/' ? "/var/tmp" : directory;
}

std::string socket_of(const ServeRequest& request, const PrivateDirectory& directory) {
  if (request.port != 0) return {};
  return request.socket.empty() ? directory.socket() : std::filesystem::absolute(request.socket).string();
}

// Among nbdkit's options. With --tls=on, clients may do without.
bool requires_tls(const std::vector<std::string>& options) {
  for (size_t i = 0; i < options.size(); ++i) {
    if (options[i] == "--tls=require") return true;
    if (options[i] == "--tls" && i + 1 < options.size() && options[i + 1] == "require") return true;
  }
  return false;
}

json json_of(const ServeRequest& request, const std::vector<ServedDisk>& disks, const std::string& socket) {
  json result = {{"domain", request.domain},
                 {"snapshot", request.name},
                 {"socket", socket.empty() ? json() : json(socket)},
                 {"address", socket.empty() ? json(request.address) : json()},
                 {"port", socket.empty() ? json(request.port) : json()},
                 {"writable", request.overlay},
                 {"exports", json::array()}};
  for (const ServedDisk& disk : disks) {
    result["exports"].push_back(
        {{"disk", disk.target}, {"uri", disk.uri}, {"size", disk.size}, {"in_use", disk.in_use}});
  }
  return result;
}

std::string text_of(const ServeRequest& request, const std::vector<ServedDisk>& disks) {
  std::string text =
      fmt::format("Snapshot '{}' of '{}' is served; Ctrl-C ends it.\n", visible(request.name), visible(request.domain));
  for (const ServedDisk& disk : disks) {
    text += fmt::format("  {}  {}  {}\n", visible(disk.target), format_size(disk.size), disk.uri);
  }
  const auto used = std::ranges::count_if(disks, &ServedDisk::in_use);
  if (used != 0) text += "The machine is running: clients get errors once the snapshot is deleted.\n";
  if (request.overlay) text += "What clients write is thrown away then.\n";
  return text;
}

Result<ExitCode> serve(Context& context, const ServeRequest& request) {
  const NbdkitPrograms programs = TRY(find_nbdkit());
  std::vector<nbd::ExportSpec> specs;
  std::vector<ServedDisk> disks;
  {
    const auto host = TRY(open_host(context, "snapshot serve " + request.domain));
    for (const DiskPoint& disk : TRY(points_of_snapshot(*host, request.domain, request.name, request.disks))) {
      const auto point = TRY(open_point(request.domain, disk));  // here rather than in nbdkit: a better message
      disks.push_back({.target = disk.target, .uri = {}, .size = point->size(), .in_use = point->is_watched()});
      specs.push_back({.name = disk.target, .point = disk.point, .overlay = {}});
      if (request.overlay) specs.back().overlay = overlay_directory();
    }
  }
  if (context.options.dry_run) {
    Plan plan;
    plan.title = fmt::format("serve snapshot '{}' of '{}'", request.name, request.domain);
    for (const ServedDisk& disk : disks) {
      plan.steps.push_back(fmt::format("serve disk {}, {}", disk.target, format_size(disk.size)));
    }
    print_plan(context.output, context.options.json, plan);
    return ExitCode::kDone;
  }
  const InterruptWatch watch;
  const PrivateDirectory directory = TRY(PrivateDirectory::make());
  const std::string socket = socket_of(request, directory);
  ListeningSockets sockets = socket.empty() ? TRY(ListeningSockets::on_port(request.address, request.port))
                                            : TRY(ListeningSockets::on_path(socket));
  const bool tls = requires_tls(request.more);
  for (ServedDisk& disk : disks) {
    disk.uri = socket.empty() ? nbd::tcp_uri(disk.target, request.address, request.port, tls)
                              : nbd::unix_uri(disk.target, socket, tls);
  }
  std::vector<std::string> arguments;
  // More threads for each connection take turns with each other (docs/serve.md). What the user says comes later and
  // wins.
  arguments.insert(arguments.end(), {"-t", "6"});
  // An image in its frozen state is not written to.
  if (!request.overlay) arguments.emplace_back("-r");
  arguments.push_back(programs.plugin);
  for (std::string& parameter : nbd::parameters_of(specs)) arguments.push_back(std::move(parameter));
  arguments.insert(arguments.end(), request.more.begin(), request.more.end());
  Nbdkit server = TRY(Nbdkit::start(programs, arguments, sockets, directory.pid_file()));
  if (context.options.json) {
    print_json(context, json_of(request, disks, socket));
  } else {
    context.output.print(text_of(request, disks));
  }
  if (!context.output.finish()) return make_error(ErrorKind::kIo, "standard output can't be written");
  TRY(server.wait());
  return ExitCode::kDone;
}

}  // namespace

void add_snapshot_serve(CLI::App& snapshot, Context& context) {
  CLI::App* verb = snapshot.add_subcommand("serve", "Serve the disks as they were, as NBD exports, until Ctrl-C");
  auto request = std::make_shared<ServeRequest>();
  verb->add_option("VM", request->domain, "The domain")->required();
  verb->add_option("NAME", request->name, "The snapshot")->required();
  verb->add_option("--disk", request->disks, "Only this disk; may be repeated")
      ->type_name("TARGET")
      ->expected(1)
      ->take_all();
  CLI::Option* socket =
      verb->add_option("--socket", request->socket, "On this Unix socket, in the place of one of its own")
          ->type_name("PATH");
  CLI::Option* port = verb->add_option("--port", request->port, "On this TCP port, of this machine alone")
                          ->type_name("N")
                          ->check(CLI::Range(1, 65535))
                          ->excludes(socket);
  verb->add_option("--address", request->address, "With --port: on this address of the machine, for others to reach")
      ->type_name("ADDRESS")
      ->needs(port);
  verb->add_flag("--rw-overlay", request->overlay, "Let clients write, and throw away at the end what they wrote");
  verb->add_option("NBDKIT_OPTION", request->more, "After --: for nbdkit, e.g. --tls=require --tls-certificates=DIR");
  verb->callback([&context, request] { context.action = [&context, request] { return serve(context, *request); }; });
}

}  // namespace varve::cli
