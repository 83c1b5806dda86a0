#include "cli/vm_transfer.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/units.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "cli/plan_text.h"
#include "io/file_limits.h"
#include "io/free_space.h"
#include "operation/define_domain.h"
#include "transfer/archive.h"
#include "transfer/archive_export.h"
#include "transfer/export_directory.h"
#include "transfer/incremental_export.h"
#include "transfer/incremental_import.h"
#include "transfer/transfer.h"
#include "transfer/transfer_state.h"
#include "transfer/unpack_directory.h"

namespace varve::cli {

namespace {

using nlohmann::json;

struct Request {
  std::string domain;
  std::string where;                 // DIRECTORY, or a host's URI
  std::string images;                // of the receiving host
  std::optional<std::string> since;  // a snapshot
  std::vector<std::string> bases;    // directories of earlier exports
  bool verify = false;
};

bool is_uri(const std::string& where) {
  const size_t colon = where.find(':');
  return colon != std::string::npos && colon < where.find('/');
}

std::string absolute(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

// The same without a slash at its end.
std::string tidy(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

// The directory that a user means who knows that it is a host, too. kInvalidArgument: another URI.
Result<std::string> plain_directory(const std::string& where) {
  if (!is_uri(where)) return tidy(absolute(where));
  if (where.starts_with("dir:")) return tidy(absolute(where.substr(4)));
  return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no directory", where))
      .with_note("`vm move --to` takes hosts; `vm export` and `vm import` take directories, and -c says the host");
}

std::string directory_uri(const std::string& path) {
  return "dir:" + absolute(path);
}

json notes_of(Transfer& transfer, const std::vector<std::string>& more = {}) {
  json notes = transfer.plan().notes;
  for (const std::string& note : more) notes.push_back(note);
  return notes;
}

void tell(Context& context, const std::string& text, const json& result) {
  if (context.options.json) return print_json(context, result);
  if (context.options.quiet) return;
  context.output.print(text + "\n");
  for (const json& note : result["notes"]) context.output.note(fmt::format("  note: {}\n", note.get<std::string>()));
}

Result<void> run(Context& context, Transfer& transfer) {
  const InterruptWatch interrupts;
  ProgressBar bar(transfer.plan().title, !context.options.quiet && !context.options.json);
  return transfer.run({.progress = [&](uint64_t at, uint64_t total) { bar.update(at, total); },
                       .cancelled = [] { return interrupted(); }});
}

Result<ExitCode> move_within(Context& context, Host& host, const Request& request) {
  const std::string directory = tidy(absolute(request.where));
  const auto images = host.layout().to_root_path(directory);
  if (!images && images.error().kind == ErrorKind::kNotFound) {
    return make_error(ErrorKind::kNotFound, fmt::format("there is no directory {}", directory))
        .with_note(fmt::format("`mkdir -p '{0}'` makes it; `--to 'dir:{0}'` makes a host of its own there, with the "
                               "definition and the snapshots in it",
                               directory));
  }
  Transfer transfer =
      TRY(Transfer::plan(host, host,
                         {.purpose = TransferPurpose::kMove,
                          .domain = request.domain,
                          .images_directory = TRY(images),
                          .verifies = true,
                          .command = fmt::format("vm move '{}' --to '{}'", request.domain, request.where)}));
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, transfer.plan());
    return ExitCode::kDone;
  }
  TRY(run(context, transfer));
  tell(context, fmt::format("The images of '{}' are in {} now.", request.domain, directory),
       {{"domain", request.domain}, {"images", directory}, {"notes", notes_of(transfer)}});
  return ExitCode::kDone;
}

Result<ExitCode> move_domain(Context& context, const Request& request) {
  const auto host = TRY(open_host(context, "vm move " + request.domain));
  if (!is_uri(request.where)) {
    if (request.images.empty()) return move_within(context, *host, request);
    return make_error(ErrorKind::kInvalidArgument, "--images is for moves to another host")
        .with_note("`--to DIRECTORY` says where the images go");
  }
  TRY(host->check_writable());
  const auto target = TRY(open_host_at(context, request.where, "vm move " + request.domain, IfMissing::kCreate));
  TRY(check_no_increment(target->layout(), request.domain));
  Transfer transfer =
      TRY(Transfer::plan(*host, *target,
                         {.purpose = TransferPurpose::kMove,
                          .domain = request.domain,
                          .images_directory = tidy(request.images),
                          .verifies = true,
                          .command = fmt::format("vm move '{}' --to '{}'", request.domain, request.where)}));
  if (context.options.dry_run) {
    transfer.plan().steps.push_back(
        fmt::format("undefine '{}' here, and remove its snapshots and its images", request.domain));
    print_plan(context.output, context.options.json, transfer.plan());
    return ExitCode::kDone;
  }
  TRY(run(context, transfer));
  auto removed = transfer.remove_source();
  if (!removed) {
    return std::move(removed)
        .error()
        .context(fmt::format("'{}' is on {} now, verified, but it is still here, too", request.domain, request.where))
        .with_note("the same command goes on with removing it here");
  }
  tell(context, fmt::format("Domain '{}' is on {} now.", request.domain, request.where),
       {{"domain", request.domain}, {"host", request.where}, {"notes", notes_of(transfer, *removed)}});
  return ExitCode::kDone;
}

json files_json(const Manifest& manifest) {
  json files = json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back(
        {{"path", file.path}, {"role", name_of(file.role)}, {"size_bytes", file.size_bytes}, {"sha256", file.sha256}});
    if (!manifest.base) continue;
    files.back()["stored"] = name_of(file.storage);
    if (file.storage != Storage::kDelta) continue;
    files.back()["delta"] = {{"size_bytes", file.delta_bytes}, {"sha256", file.delta_sha256}};
  }
  return files;
}

bool is_archive_name(const std::string& where) {
  return where.ends_with(".varve") || where.ends_with(".tar");
}

// An ArchiveExport or an IncrementalExport.
template <typename Export>
Result<Manifest> run_export(Context& context, Export& exporting) {
  const InterruptWatch interrupts;
  ProgressBar bar(exporting.plan().title, !context.options.quiet && !context.options.json);
  return exporting.run(std::time(nullptr), {.progress = [&](uint64_t at, uint64_t total) { bar.update(at, total); },
                                            .cancelled = [] { return interrupted(); }});
}

Result<ExitCode> export_archive(Context& context, Host& host, const Request& request) {
  if (request.verify) {
    return make_error(ErrorKind::kInvalidArgument, "--verify is for exports into directories")
        .with_note("`vm import` compares every checksum of an archive before anything is defined");
  }
  const std::string path = absolute(request.where);
  ArchiveExport exporting = TRY(ArchiveExport::plan(host, request.domain, path));
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, exporting.plan());
    return ExitCode::kDone;
  }
  const Manifest manifest = TRY(run_export(context, exporting));
  tell(context,
       fmt::format("Domain '{0}' is exported to {1}: {2} files.\n"
                   "`varve vm import '{1}'` brings it back, here or on another host; `tar xf` unpacks it.",
                   request.domain, path, manifest.files.size()),
       {{"domain", request.domain},
        {"archive", path},
        {"files", files_json(manifest)},
        {"notes", exporting.plan().notes}});
  return ExitCode::kDone;
}

// An empty variable of a script is no request for everything.
Result<void> check_not_empty(const Request& request) {
  const bool is_empty = (request.since && request.since->empty()) ||
                        std::ranges::any_of(request.bases, [](const std::string& base) { return base.empty(); });
  if (!is_empty) return {};
  return make_error(ErrorKind::kInvalidArgument, "an empty text is no name of a snapshot, and of no directory")
      .with_note("--since takes the name of a snapshot, --base a directory");
}

Result<ExitCode> export_increment(Context& context, Host& host, const Request& request) {
  const std::string directory = TRY(plain_directory(request.where));
  IncrementalExport exporting =
      TRY(IncrementalExport::plan(host, {.domain = request.domain,
                                         .directory = directory,
                                         .snapshot = *request.since,
                                         .base = request.bases.empty() ? "" : TRY(plain_directory(request.bases[0])),
                                         .verifies = request.verify}));
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, exporting.plan());
    return ExitCode::kDone;
  }
  const Manifest manifest = TRY(run_export(context, exporting));
  uint64_t written = 0;
  size_t unchanged = 0;
  for (const ManifestFile& file : manifest.files) {
    if (file.storage == Storage::kWhole) written += file.size_bytes;
    if (file.storage == Storage::kDelta) written += file.delta_bytes;
    if (file.storage == Storage::kUnchanged) ++unchanged;
  }
  tell(context,
       fmt::format("Domain '{0}' is exported to {1}, as what differs from {2}: {3} files, {4} of them unchanged, {5}.\n"
                   "It needs that export, where it is now. `varve vm import '{1}' '{0}'` brings the machine back.",
                   request.domain, directory, exporting.base_directory(), manifest.files.size(), unchanged,
                   format_size(written)),
       {{"domain", request.domain},
        {"directory", directory},
        {"base", exporting.base_directory()},
        {"since", *request.since},
        {"written_bytes", written},
        {"files", files_json(manifest)},
        {"notes", exporting.plan().notes}});
  return ExitCode::kDone;
}

Result<ExitCode> export_domain(Context& context, const Request& request) {
  TRY(check_not_empty(request));
  if (!request.since && !request.bases.empty()) {
    return make_error(ErrorKind::kInvalidArgument, "--base is for exports of what has changed since a snapshot")
        .with_note("`--since NAME` names one that both have");
  }
  if (request.since && is_archive_name(request.where)) {
    return make_error(ErrorKind::kUnsupported, "what has changed goes into a directory, beside the earlier export's")
        .with_note(
            fmt::format("`varve vm export '{}' DIRECTORY --since '{}'`; without --since, one file takes all of it",
                        request.domain, *request.since));
  }
  const auto host = TRY(open_host(context, "vm export " + request.domain));
  if (is_archive_name(request.where)) return export_archive(context, *host, request);
  if (request.since) return export_increment(context, *host, request);
  const std::string directory = TRY(plain_directory(request.where));
  if (const auto there = Layout::open(directory)) TRY(check_no_increment(*there, request.domain));
  const auto target =
      TRY(open_host_at(context, directory_uri(directory), "vm export " + request.domain, IfMissing::kCreate));
  Transfer transfer =
      TRY(Transfer::plan(*host, *target,
                         {.purpose = TransferPurpose::kExport,
                          .domain = request.domain,
                          .images_directory = {},
                          .verifies = request.verify,
                          .command = fmt::format("vm export '{}' '{}'", request.domain, request.where)}));
  if (context.options.dry_run) {
    transfer.plan().steps.push_back(
        fmt::format("write {}/{}{} with the checksums of all files", directory, request.domain, kManifestSuffix));
    print_plan(context.output, context.options.json, transfer.plan());
    return ExitCode::kDone;
  }
  TRY(run(context, transfer));
  const Manifest manifest = TRY(transfer.manifest(std::time(nullptr)));
  TRY(save_manifest(target->layout(), manifest));
  TRY(transfer.finish());
  uint64_t bytes = 0;
  for (const ManifestFile& file : manifest.files) bytes += file.size_bytes;
  tell(context,
       fmt::format("Domain '{0}' is exported to {1}: {2} files, {3}.\n"
                   "`cd '{1}' && sha256sum -c '{0}{4}'` checks them; `varve -c 'dir:{1}' …` works with it there;\n"
                   "`varve vm import '{1}' '{0}'` brings it back, here or on another host.",
                   request.domain, directory, manifest.files.size(), format_size(bytes), kChecksumsSuffix),
       {{"domain", request.domain},
        {"directory", directory},
        {"files", files_json(manifest)},
        {"notes", notes_of(transfer)}});
  return ExitCode::kDone;
}

// The only one that there is, where nobody says which.
Result<std::string> choose_domain(const Layout& layout, const std::string& said) {
  if (!said.empty()) return said;
  const std::vector<std::string> domains = TRY(exported_domains(layout));
  if (domains.size() == 1) return domains[0];
  if (domains.empty()) {
    return make_error(ErrorKind::kNotFound, fmt::format("there is no export in {}", layout.root()))
        .with_note(fmt::format("what `vm export` writes has a file NAME{} at its top", kManifestSuffix));
  }
  return make_error(ErrorKind::kInvalidArgument,
                    fmt::format("{} holds several machines: {}", layout.root(), list_of(domains)))
      .with_note("say which: `varve vm import DIRECTORY VM`");
}

// `before_end`: where the source is a copy that nobody needs any more; what becomes of it then.
Result<ExitCode> import_from(Context& context, Host& host, const std::string& directory, const Request& request,
                             const std::function<Result<void>()>& before_end) {
  const auto source = TRY(open_host_at(context, directory_uri(directory), "vm import"));
  const std::string domain = TRY(choose_domain(source->layout(), request.domain));
  TRY(check_no_increment(host.layout(), domain));
  Manifest manifest = TRY(load_manifest(source->layout(), domain));
  Transfer transfer = TRY(Transfer::plan(*source, host,
                                         {.purpose = TransferPurpose::kImport,
                                          .domain = domain,
                                          .images_directory = tidy(request.images),
                                          .verifies = request.verify,
                                          .takes_files = before_end != nullptr,
                                          .command = fmt::format("vm import '{}' '{}'", request.where, domain),
                                          .manifest = std::move(manifest)}));
  if (context.options.dry_run) {
    print_plan(context.output, context.options.json, transfer.plan());
    return ExitCode::kDone;
  }
  TRY(run(context, transfer));
  if (before_end) TRY(before_end());
  TRY(transfer.finish());
  tell(context, fmt::format("Domain '{}' is imported.", domain), {{"domain", domain}, {"notes", notes_of(transfer)}});
  return ExitCode::kDone;
}

// The export in the directory, where that is an incremental one.
Result<std::optional<ExportChain>> increment_in(const std::string& directory, const Request& request) {
  const auto layout = Layout::open(directory);
  if (!layout) return std::optional<ExportChain>();  // said by whoever opens it as a host
  const std::string domain = TRY(choose_domain(*layout, request.domain));
  if (!TRY(load_manifest(*layout, domain)).base) return std::optional<ExportChain>();
  std::vector<std::string> bases;
  for (const std::string& base : request.bases) bases.push_back(TRY(plain_directory(base)));
  return std::optional(TRY(ExportChain::open(*layout, domain, bases)));
}

Plan plan_of(const ExportChain& chain) {
  const Manifest& manifest = chain.manifest();
  Plan plan{.title = fmt::format("import '{}'", manifest.domain), .checks = {}, .steps = {}, .notes = {}};
  plan.checks.push_back(fmt::format("{} earlier exports that it stands on are there", chain.depth() - 1));
  for (const ManifestFile& file : manifest.files) {
    if (file.role == FileRole::kDefinition || file.role == FileRole::kSnapshot) continue;
    plan.steps.push_back(
        fmt::format("put {} together ({}, {})", file.path, name_of(file.role), format_size(file.size_bytes)));
  }
  plan.steps.emplace_back("compare the checksums of all files, and give them their names");
  plan.steps.push_back(fmt::format("define '{}' with its snapshots", manifest.domain));
  return plan;
}

Result<ExitCode> put_together_and_import(Context& context, Host& host, const ExportChain& chain, const Request& request,
                                         const ImportDirectory& directory) {
  {
    const InterruptWatch interrupts;
    ProgressBar bar(fmt::format("put '{}' together", chain.manifest().domain),
                    !context.options.quiet && !context.options.json);
    TRY(put_together(chain, directory.path(),
                     {.progress = [&](uint64_t at, uint64_t total) { bar.update(at, total); },
                      .cancelled = [] { return interrupted(); }}));
  }
  // While the transfer's state is there, the same command comes to its end.
  return import_from(context, host, directory.path(), request, [&] { return directory.remove(); });
}

// What was put together is of use for the same command, when what was in the way is not there any more.
bool may_go_on(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInterrupted:
    case ErrorKind::kNoSpace:
    case ErrorKind::kIo:
    case ErrorKind::kAlreadyExists:
    case ErrorKind::kRefused:
    case ErrorKind::kInUse:
      return true;
    default:
      return false;
  }
}

// An earlier import came so far that only its traces are left.
Result<ExitCode> finish_import(Context& context, Host& host, const ExportChain& chain,
                               const ImportDirectory& directory) {
  const std::string& domain = chain.manifest().domain;
  TRY(directory.remove());
  TRY(TransferStateFile(host.layout(), domain).remove());
  tell(context, fmt::format("Domain '{}' is imported: an earlier import had come so far.", domain),
       {{"domain", domain}, {"notes", json::array()}});
  return ExitCode::kDone;
}

Result<void> check_space(const ExportChain& chain, const ImportDirectory& directory,
                         const std::map<std::string, uint64_t>& data) {
  const bool has_holes = file_limits(directory.path()).has_holes;
  uint64_t bytes = 0;
  for (const ManifestFile& file : chain.manifest().files) {
    const auto known = data.find(file.path);
    bytes += has_holes && known != data.end() ? known->second : file.size_bytes;
  }
  SpaceNeeds space;
  space.add(directory.path(), bytes - std::min(bytes, directory.occupied_bytes()));
  return space.check();
}

Result<ExitCode> import_increment(Context& context, Host& host, const ExportChain& chain, const Request& request) {
  const std::string& domain = chain.manifest().domain;
  const std::string images = request.images.empty() ? host.images_directory() : tidy(request.images);
  TRY(check_no_increment(host.layout(), domain));
  const bool is_done = TRY(is_imported(host, chain));
  std::map<std::string, uint64_t> data;
  if (!is_done) {
    data = TRY(data_bytes(chain));
    TRY(check_import(host, chain, tidy(request.images), images, data));
  }
  if (context.options.dry_run) {
    Plan plan = plan_of(chain);
    if (is_done) plan.steps = {fmt::format("remove what an earlier import left, which has defined '{}'", domain)};
    print_plan(context.output, context.options.json, plan);
    return ExitCode::kDone;
  }
  TRY(host.check_writable());
  TRY(host.check_images_are_here());
  const ImportDirectory directory =
      TRY(ImportDirectory::open(TRY(host.layout().make_directories(images)), chain.manifest_sha256().substr(0, 32)));
  if (is_done) return finish_import(context, host, chain, directory);
  auto done = [&]() -> Result<ExitCode> {
    TRY(check_space(chain, directory, data));
    return put_together_and_import(context, host, chain, request, directory);
  }();
  if (done) return done;
  if (may_go_on(done.error().kind) && !directory.is_empty()) {
    return std::move(done)
        .error()
        .context(fmt::format("domain '{}' is not imported", domain))
        .with_note(fmt::format("what is put together is in {}: the same command goes on with it; remove it if it is "
                               "not wanted any more",
                               directory.path()));
  }
  (void)directory.remove().has_value();
  if (done.error().kind != ErrorKind::kCorrupt) return done;
  const std::string path = done.error().path;
  return damage_error(chain, path, std::move(done).error()).context(fmt::format("domain '{}' is not imported", domain));
}

Result<ExitCode> import_domain(Context& context, const Request& request) {
  TRY(check_not_empty(request));
  const std::string path = TRY(plain_directory(request.where));
  std::error_code unknown;
  const bool is_archive = std::filesystem::is_regular_file(path, unknown);
  if (is_archive && context.options.dry_run) {
    return make_error(ErrorKind::kUnsupported,
                      "what is in an archive is known when it has been unpacked, which a dry run "
                      "does not")
        .with_note(
            "`tar tvf` lists it; unpacked with `tar xf` into a directory, that can be imported, with --dry-run too");
  }
  const auto increment = is_archive ? std::optional<ExportChain>() : TRY(increment_in(path, request));
  if (!increment && !request.bases.empty()) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("{} is whole by itself: --base is of no use", path));
  }
  const auto host = TRY(open_host(context, "vm import " + request.domain, IfMissing::kCreate));
  if (increment) return import_increment(context, *host, *increment, request);
  if (!is_archive) return import_from(context, *host, path, request, {});
  TRY(host->check_writable());
  TRY(host->check_images_are_here());
  const uint64_t bytes = std::filesystem::file_size(path, unknown);
  const std::string images = request.images.empty() ? host->images_directory() : tidy(request.images);
  const UnpackDirectory unpacked = TRY(UnpackDirectory::make(TRY(host->layout().make_directories(images))));
  SpaceNeeds space;
  space.add(unpacked.path(), bytes);
  TRY(space.check());
  {
    const InterruptWatch interrupts;
    ProgressBar bar(fmt::format("unpack {}", path), !context.options.quiet && !context.options.json);
    TRY(extract_archive(path, unpacked.path(), [&](uint64_t done) -> Result<void> {
      bar.update(done, bytes);
      if (!interrupted()) return {};
      return make_error(ErrorKind::kInterrupted, "it was stopped; nothing was changed");
    }));
  }
  return import_from(context, *host, unpacked.path(), request, [] { return Result<void>(); });
}

void add_action(CLI::App* command, Context& context, const std::shared_ptr<Request>& request,
                Result<ExitCode> (*action)(Context&, const Request&)) {
  command->callback([&context, request, action] {
    context.action = [&context, request, action] { return action(context, *request); };
  });
}

}  // namespace

void add_vm_transfer(CLI::App& vm, Context& context) {
  CLI::App* move = vm.add_subcommand(
      "move",
      "Move a domain whole, with its snapshots, to another host, to an external drive, or its images elsewhere");
  auto moving = std::make_shared<Request>();
  move->add_option("VM", moving->domain)->required();
  move->add_option("--to", moving->where,
                   "A host (dir:/media/usb, qemu:///system), or a directory that takes the images while the domain "
                   "stays")
      ->required()
      ->type_name("HOST|DIRECTORY");
  move->add_option("--images", moving->images, "Where images go on that host, as its definitions call it")
      ->type_name("DIRECTORY");
  add_action(move, context, moving, move_domain);

  CLI::App* exporting = vm.add_subcommand(
      "export", "Copy a domain whole, with its snapshots, into a directory, or into one file (NAME.varve)");
  auto exported = std::make_shared<Request>();
  exporting->add_option("VM", exported->domain)->required();
  exporting
      ->add_option("DIRECTORY|FILE.varve", exported->where,
                   "A directory is made where it is not there, and may hold other exports")
      ->required();
  exporting
      ->add_option("--since", exported->since,
                   "Write only what differs from an earlier export that has this snapshot, too")
      ->type_name("NAME");
  exporting
      ->add_option("--base", exported->bases,
                   "That export; by default the newest beside DIRECTORY that has the snapshot")
      ->expected(1)
      ->type_name("DIRECTORY");
  exporting->add_flag("--verify", exported->verify, "Read everything back from the disk, and compare");
  add_action(exporting, context, exported, export_domain);

  CLI::App* importing = vm.add_subcommand("import", "Bring in what `vm export` wrote; every checksum is compared");
  auto imported = std::make_shared<Request>();
  importing->add_option("DIRECTORY|FILE.varve", imported->where)->required();
  importing->add_option("VM", imported->domain, "Where the directory holds several");
  importing->add_option("--images", imported->images, "Where images go, as definitions call it")
      ->type_name("DIRECTORY");
  importing
      ->add_option("--base", imported->bases,
                   "Where an export is that this one stands on, if not where it was; may be given several times")
      ->allow_extra_args(false)
      ->type_name("DIRECTORY");
  importing->add_flag("--verify", imported->verify, "Read what was written back from the disk, too");
  add_action(importing, context, imported, import_domain);
}

}  // namespace varve::cli
