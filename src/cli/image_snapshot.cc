// `image snapshot`: the snapshots inside of one qcow2 image. Only that file is opened, backing files aren't needed.
#include <fmt/format.h>

#include <chrono>
#include <cstring>

#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/image_source.h"
#include "cli/snapshot_table_text.h"
#include "image/open.h"
#include "qcow2/snapshot_transaction.h"

namespace varve::cli {

namespace {

constexpr size_t kMaxNameBytes = 255;  // QEMU cuts longer names off

enum class Action : char { kNone = 0, kList = 'l', kCreate = 'c', kApply = 'a', kDelete = 'd' };

struct SnapshotRequest {
  Action action = Action::kNone;
  std::string name;
  std::string path;
  SourceArguments source;
};

// Why `doing` a snapshot of a raw image does not work, in QEMU's words.
Error raw_has_none(Action action) {
  const char* reason = action == Action::kCreate  ? "-95 (Operation not supported)"
                       : action == Action::kApply ? "Block driver does not support snapshots"
                                                  : "snapshot not found";
  return make_error(ErrorKind::kUnsupported, reason)
      .with_note("a raw image has no place for snapshots; `varve image convert -O qcow2` makes an image that has");
}

// QEMU reports creation by number, the others by reason. `as_varve`: in our words, which say more.
std::string reason_of(const Error& error, Action action, bool as_varve) {
  if (error.sys_errno == 0 || as_varve) return error.message;
  const char* text = std::strerror(error.sys_errno);
  return action == Action::kCreate ? fmt::format("-{} ({})", error.sys_errno, text) : std::string(text);
}

// Why it does not work with an external data file, which is not opened to find out.
std::optional<Error> data_file_refusal(const SnapshotRequest& request) {
  const Result<image::OpenImage> image =
      open_source(request.path, request.source, {.use = image::Use::kInspect, .open_backing = false});
  if (!image || image->qcow2() == nullptr || !image->qcow2()->header().has_data_file()) return std::nullopt;
  const char* reason = request.action == Action::kCreate  ? "-95 (Operation not supported)"
                       : request.action == Action::kApply ? "Failed to load snapshot: Operation not supported"
                                                          : "snapshot not found";
  return make_error(ErrorKind::kUnsupported, reason)
      .with_note("data clusters in an external data file are not counted, so no snapshot can share them");
}

ImageExit cannot_do(Output& output, const SnapshotRequest& request, const Error& error) {
  const char* verb = request.action == Action::kCreate  ? "create"
                     : request.action == Action::kApply ? "apply"
                                                        : "delete";
  const std::string reason = reason_of(error, request.action, output.program() == "varve");
  return image_failure(output, fmt::format("Could not {} snapshot '{}': {}", verb, request.name, reason), &error);
}

Result<qcow2::PreparedCommit> commit(qcow2::Image& image, qcow2::SnapshotTransaction& transaction) {
  qcow2::PreparedCommit prepared = TRY(transaction.prepare());
  TRY(qcow2::SnapshotTransaction::commit(image, prepared));
  // The snapshot operation is done; space that can't be given back now is found again by a check.
  (void)qcow2::SnapshotTransaction::discard_freed(image, prepared);
  return prepared;
}

Result<qcow2::PreparedCommit> create(qcow2::Image& image, const std::string& name) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
  const auto rest = std::chrono::duration_cast<std::chrono::nanoseconds>(now - seconds);
  auto transaction = TRY(qcow2::SnapshotTransaction::begin(image));
  TRY(transaction.create({.name = name,
                          .date_sec = static_cast<uint32_t>(seconds.count()),
                          .date_nsec = static_cast<uint32_t>(rest.count())}));
  return commit(image, transaction);
}

Result<qcow2::PreparedCommit> apply(qcow2::Image& image, const std::string& id_or_name) {
  const std::optional<size_t> index = qcow2::find_by_id_or_name(image.snapshots(), id_or_name);
  if (!index) return make_error(ErrorKind::kNotFound, "Failed to load snapshot: No such file or directory");
  auto transaction = TRY(qcow2::SnapshotTransaction::begin(image));
  TRY(transaction.revert(*index));
  return commit(image, transaction);
}

Result<qcow2::PreparedCommit> remove(qcow2::Image& image, const std::string& name) {
  const std::optional<size_t> index = qcow2::find_by_name(image.snapshots(), name);
  if (!index) return make_error(ErrorKind::kNotFound, "snapshot not found");
  auto transaction = TRY(qcow2::SnapshotTransaction::begin(image));
  TRY(transaction.remove(std::span(&*index, 1)));
  return commit(image, transaction);
}

uint64_t total(const std::vector<qcow2::FileRange>& ranges) {
  uint64_t bytes = 0;
  for (const qcow2::FileRange& range : ranges) bytes += range.length;
  return bytes;
}

// After the rehearsal: the image shows what it would be.
Plan plan_of(const SnapshotRequest& request, const image::OpenImage& image, uint64_t size_before,
             const qcow2::PreparedCommit& prepared) {
  const char* verb = request.action == Action::kCreate  ? "create snapshot"
                     : request.action == Action::kApply ? "revert to snapshot"
                                                        : "delete snapshot";
  Plan plan = begin_image_plan(fmt::format("{} '{}' in {}", verb, request.name, request.path), image);
  if (prepared.before == prepared.after) {
    plan.notes.push_back("the image holds just that already: nothing would be written");
    return plan;
  }
  plan.steps.push_back(
      fmt::format("write {} of new metadata into clusters that are free", bytes_text(total(prepared.shadow))));
  plan.steps.push_back("write the header's sector: from then on it is so");
  if (!prepared.freed.empty())
    plan.steps.push_back(fmt::format("give back {} to the file system", bytes_text(total(prepared.freed))));
  const uint64_t size = image.qcow2()->header().size;
  if (size != size_before)
    plan.notes.push_back(fmt::format("the disk's size becomes {} bytes; it is {} now", size, size_before));
  if (request.action == Action::kApply)
    plan.notes.push_back("what the disk holds now is thrown away; `image snapshot -c NAME` keeps it");
  return plan;
}

ImageExit run(Output& output, const SnapshotRequest& request) {
  const bool writes = request.action != Action::kList && request.action != Action::kNone;
  if (writes) {
    if (const auto refused = data_file_refusal(request)) return cannot_do(output, request, *refused);
  }
  const Result<image::OpenImage> opened =
      open_source(request.path, request.source,
                  {.use = writes ? image::Use::kWriteMetadata : image::Use::kInspect, .open_backing = false});
  if (!opened) return image_failure(output, opened.error());

  qcow2::Image* image = opened->qcow2();
  const uint64_t size_before = image == nullptr ? 0 : image->header().size;
  Result<qcow2::PreparedCommit> done = raw_has_none(request.action);
  switch (request.action) {
    case Action::kNone:
      return {0};
    case Action::kList:
      if (image != nullptr) {
        const std::string table = snapshot_table_text(image->snapshots());
        output.print(output.program() == "varve" ? visible_lines(table) : table);
      }
      return {0};
    case Action::kCreate:
      if (image != nullptr) done = create(*image, request.name);
      break;
    case Action::kApply:
      if (image != nullptr) done = apply(*image, request.name);
      break;
    case Action::kDelete:
      if (image != nullptr) done = remove(*image, request.name);
      break;
  }
  if (!done) return cannot_do(output, request, done.error());
  const DryRun& dry_run = request.source.dry_run;
  if (dry_run.wanted) {
    if (const auto enough = check_space(*opened); !enough) return space_failure(output, enough.error());
    return print_image_plan(output, dry_run, plan_of(request, *opened, size_before, *done));
  }
  return {0};
}

}  // namespace

ImageExit image_snapshot(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "la:c:d:f:hqU",
                                                      {{"help", false, 'h'},
                                                       {"format", true, 'f'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  SnapshotRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'l':
      case 'a':
      case 'c':
      case 'd':
        if (request.action != Action::kNone) return usage_failure(call.output, "Cannot mix '-l', '-a', '-c', '-d'");
        request.action = static_cast<Action>(id);
        request.name = value.substr(0, id == 'c' ? kMaxNameBytes : std::string::npos);
        break;
      default:
        break;  // -q: there is nothing to be quiet about
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  const bool writes = request.action != Action::kList && request.action != Action::kNone;
  if (writes) {
    if (auto refused = refused_for_space(call.output, request, request.path, run)) return *refused;
  }
  return run(call.output, request);
}

}  // namespace varve::cli
