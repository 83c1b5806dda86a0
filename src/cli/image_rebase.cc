// `image rebase`: another backing file for an overlay.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cli/cache_mode.h"
#include "cli/dirty_image.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/image_progress.h"
#include "cli/image_source.h"
#include "cli/interrupt.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"
#include "image/open.h"
#include "image/rebase.h"
#include "io/free_space.h"

namespace varve::cli {

namespace {

struct RebaseRequest {
  std::string path;
  SourceArguments source;
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::string cache = "writeback";
  std::string source_cache = "writeback";
  bool unsafe = false;
  bool progress = false;
  bool quiet = false;
};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

Result<image::OpenImage> open_overlay(const RebaseRequest& request) {
  SourceArguments source = request.source;
  source.bypass_cache = parse_cache_mode(request.cache)->direct;
  source.share = false;  // qemu-img takes -U, and takes the locks of a writer all the same
  return open_source(request.path, source, {.use = image::Use::kWrite, .open_backing = !request.unsafe});
}

// The new chain, for reading. Its format is what -F says; probed where it says nothing, as to compare is not to trust:
// such a name is refused before it is written.
Result<image::OpenImage> open_new_backing(const RebaseRequest& request, const std::string& overlay) {
  const std::string path = image::resolve_backing_name(overlay, *request.backing_file);
  std::optional<image::Format> format;
  if (request.backing_format) format = image::format_of_name(*request.backing_format);
  if (request.backing_format && !format) {
    return invalid(fmt::format("Could not open new backing file '{}': Unknown driver '{}'", *request.backing_file,
                               *request.backing_format));
  }
  image::OpenFailure failure;
  Result<image::OpenImage> opened = image::open_image(
      path,
      {.format = format, .use = image::Use::kRead, .bypass_cache = parse_cache_mode(request.source_cache)->direct},
      &failure);
  if (!opened) {
    opened.error().message =
        fmt::format("Could not open new backing file '{}': {}", *request.backing_file, qemu_open_reason(failure));
  }
  return opened;
}

// What a rebase would copy into the overlay.
struct RebaseNeeds {
  uint64_t data_bytes = 0;
  uint64_t zero_bytes = 0;
};

Result<RebaseNeeds> copy_what_differs(const RebaseRequest& request, const image::OpenImage& overlay,
                                      ImageProgress& progress) {
  RebaseNeeds needs;
  std::optional<image::OpenImage> backing;
  if (!request.backing_file->empty()) backing = TRY(open_new_backing(request, overlay.path()));
  const std::vector<image::ChainLayer> old_chain = image::chain_layers(overlay, 1);
  const std::vector<image::ChainLayer> new_chain =
      backing ? image::chain_layers(*backing) : std::vector<image::ChainLayer>{};
  if (backing && !request.backing_format) return needs;  // refused below, and nothing may be changed before
  if (overlay.qcow2() == nullptr) return needs;          // has nothing that shows through
  image::RebaseOptions options;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  if (overlay.file().is_rehearsal()) {
    options.instead_of_writing = [&](uint64_t, uint64_t length, bool zeroes) {
      (zeroes ? needs.zero_bytes : needs.data_bytes) += length;
    };
  }
  Result<void> copied = image::copy_for_rebase(*overlay.qcow2(), old_chain, new_chain, options);
  if (copied) copied = overlay.device()->flush();  // the copy | the name that makes it necessary
  if (copied) return needs;
  if (copied.error().kind == ErrorKind::kInterrupted) {
    return make_error(ErrorKind::kInterrupted,
                      fmt::format("interrupted: '{}' has its old backing file, and shows what it showed; "
                                  "the same command does the rest",
                                  request.path));
  }
  Error error = std::move(copied).error();
  error.message = fmt::format("error while copying to '{}': {}", request.path,
                              error.sys_errno != 0 ? std::strerror(error.sys_errno) : error.message);
  return error;
}

Result<void> change_name(const RebaseRequest& request, const image::OpenImage& overlay) {
  const std::string name = request.backing_file.value_or("");
  const auto failed = [&](const std::string& why) {
    return invalid(fmt::format("Could not change the backing file to '{}': {}", name, why));
  };
  if (overlay.qcow2() == nullptr) return failed("Operation not supported");
  if (!name.empty() && !request.backing_format) return failed("backing format must be specified");
  if (name.size() > qcow2::kMaxBackingNameBytes) return failed("Invalid argument");
  const bool has_name = !name.empty();
  Result<void> changed = overlay.qcow2()->change_backing_name(has_name ? std::optional(name) : std::nullopt,
                                                              has_name ? request.backing_format : std::nullopt);
  if (changed) return {};
  if (changed.error().kind == ErrorKind::kNoSpace) return failed("No space left in the file header");
  return failed(changed.error().sys_errno != 0 ? std::strerror(changed.error().sys_errno) : changed.error().message);
}

// The rehearsal is over: `overlay` has the new name already.
Plan plan_of(const RebaseRequest& request, const image::OpenImage& overlay, const RebaseNeeds& needs,
             const std::optional<std::string>& old_name) {
  const std::string name = request.backing_file.value_or("");
  const auto quoted = [](const std::string& text) { return text.empty() ? "none" : fmt::format("'{}'", text); };
  Plan plan = begin_image_plan(
      fmt::format("rebase {} to {}", request.path, name.empty() ? "no backing file" : quoted(name)), overlay);
  if (!request.unsafe && !name.empty()) plan.checks.push_back(fmt::format("{} can be read", quoted(name)));
  if (needs.data_bytes != 0)
    plan.steps.push_back(
        fmt::format("copy {} that would show differently into {}", bytes_text(needs.data_bytes), request.path));
  if (needs.zero_bytes != 0)
    plan.steps.push_back(fmt::format("make {} zero in {}", bytes_text(needs.zero_bytes), request.path));
  plan.steps.push_back(
      fmt::format("change the header's backing file from {} to {}{}", quoted(old_name.value_or("")), quoted(name),
                  !name.empty() && request.backing_format ? fmt::format(", format {}", *request.backing_format) : ""));
  if (request.unsafe)
    plan.notes.push_back(
        "nothing is compared (-u): where the new backing file holds something else, the disk shows it");
  return plan;
}

// Clusters of the file that are free may take it.
uint64_t new_bytes(qcow2::Image& overlay, const RebaseNeeds& needs) {
  // Places that are there already: in the data file; of subclusters in clusters that others have.
  if (overlay.header().has_data_file() || overlay.header().has_extended_l2()) return 0;
  const uint64_t cluster = overlay.header().cluster_size();
  const auto size = overlay.file().size();
  const uint64_t there = size ? *size / cluster + 1 : 0;
  const auto used = overlay.used_clusters(there);
  if (!size || !used) return 0;
  const uint64_t free = (there - std::min(there, *used)) * cluster;
  return needs.data_bytes - std::min(needs.data_bytes, free);
}

// With a plan to be printed, or where space might not suffice: the disks are compared, and nothing is written.
Result<void> rehearse(Output& output, RebaseRequest request) {
  const bool prints = request.source.dry_run.wanted;
  request.source.dry_run.wanted = true;
  ImageProgress progress(output, false);
  const image::OpenImage overlay = TRY(open_overlay(request));
  RebaseNeeds needs;
  const InterruptWatch watch;
  if (!request.unsafe) needs = TRY(copy_what_differs(request, overlay, progress));
  if (overlay.qcow2() != nullptr) TRY(check_space(overlay.data_file(), new_bytes(*overlay.qcow2(), needs)));
  const auto old_name = overlay.qcow2() != nullptr ? overlay.qcow2()->header().backing_file : std::nullopt;
  if (!prints) return {};
  TRY(change_name(request, overlay));
  print_image_plan(output, request.source.dry_run, plan_of(request, overlay, needs, old_name));
  return {};
}

// Comparing costs as much as the work itself, so it is done where it decides something.
Result<bool> may_lack_space(const RebaseRequest& request) {
  if (request.source.as_qemu_img || request.unsafe) return false;
  SourceArguments source = request.source;
  source.share = true;  // its size is all that is asked for
  const auto looked = open_source(request.path, source, {.use = image::Use::kInspect, .open_backing = false});
  if (!looked) return false;                         // the work itself says why
  if (is_dirty_image(looked->path())) return false;  // it is repaired first, and then nobody knows what is free
  SpaceNeeds most;
  most.add(looked->path(), TRY(looked->device()->size()));
  return !most.enough();
}

Result<void> run(Output& output, const RebaseRequest& request) {
  ImageProgress progress(output, request.progress && !request.quiet && !request.source.dry_run.wanted);
  if (!parse_cache_mode(request.cache)) return invalid("Invalid cache option: " + request.cache);
  if (!parse_cache_mode(request.source_cache)) return invalid("Invalid source cache option: " + request.source_cache);
  if (request.backing_format && !is_qemu_driver(*request.backing_format)) {
    TRY(open_overlay(request));  // what is wrong with it comes first
    return invalid(fmt::format("Invalid format name: '{}'", *request.backing_format));
  }
  if (request.source.dry_run.wanted || TRY(may_lack_space(request))) {
    TRY(rehearse(output, request));
    if (request.source.dry_run.wanted) return {};
  }
  const image::OpenImage overlay = TRY(open_overlay(request));
  const InterruptWatch watch;
  if (!request.unsafe) TRY(copy_what_differs(request, overlay, progress));
  TRY(change_name(request, overlay));
  progress.finish();
  return {};
}

}  // namespace

ImageExit image_rebase(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "hf:F:b:upt:T:qU",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  RebaseRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'F':
        request.backing_format = value;
        break;
      case 'b':
        request.backing_file = value;
        break;
      case 'u':
        request.unsafe = true;
        break;
      case 'p':
        request.progress = true;
        break;
      case 't':
        request.cache = value;
        break;
      case 'T':
        request.source_cache = value;
        break;
      default:
        request.quiet = true;
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  if (!request.unsafe && !request.backing_file) {
    return usage_failure(call.output, "Must specify backing file (-b) or use unsafe mode (-u)");
  }
  request.path = parsed.operands[0];
  const Result<void> done = run(call.output, request);
  if (!done) return image_failure(call.output, done.error().message, &done.error());
  return {0};
}

}  // namespace varve::cli
