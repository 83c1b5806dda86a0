// `image rebase`: another backing file for an overlay.
#include <fmt/format.h>

#include <cstring>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_progress.h"
#include "cli/image_source.h"
#include "cli/interrupt.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"
#include "image/open.h"
#include "image/rebase.h"

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
  source.share = false;  // qemu-img takes -U, and takes the locks of a writer all the same
  return open_source(request.path, source, {.use = image::Use::kWrite, .open_backing = !request.unsafe});
}

// The new chain, for reading. Its format is what -F says; probed where it says nothing, as to compare is not to trust:
// such a name is refused before it is written.
Result<image::OpenImage> open_new_backing(const RebaseRequest& request, const std::string& overlay) {
  const std::string path = image::resolve_backing_name(overlay, *request.backing_file);
  std::optional<image::Format> format;
  if (request.backing_format && !(format = image::format_of_name(*request.backing_format))) {
    return invalid(fmt::format("Could not open new backing file '{}': Unknown driver '{}'", *request.backing_file,
                               *request.backing_format));
  }
  image::OpenFailure failure;
  Result<image::OpenImage> opened = image::open_image(path, {.format = format, .use = image::Use::kRead}, &failure);
  if (!opened) {
    opened.error().message =
        fmt::format("Could not open new backing file '{}': {}", *request.backing_file, qemu_open_reason(failure));
  }
  return opened;
}

Result<void> copy_what_differs(const RebaseRequest& request, const image::OpenImage& overlay, ImageProgress& progress) {
  std::optional<image::OpenImage> backing;
  if (!request.backing_file->empty()) backing = TRY(open_new_backing(request, overlay.path()));
  const std::vector<image::ChainLayer> old_chain = image::chain_layers(overlay, 1);
  const std::vector<image::ChainLayer> new_chain =
      backing ? image::chain_layers(*backing) : std::vector<image::ChainLayer>{};
  if (backing && !request.backing_format) return {};  // refused below, and nothing may be changed before
  if (overlay.qcow2() == nullptr) return {};  // has nothing that shows through
  image::RebaseOptions options;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  Result<void> copied = image::copy_for_rebase(*overlay.qcow2(), old_chain, new_chain, options);
  if (copied) copied = overlay.device()->flush();  // the copy | the name that makes it necessary
  if (copied) return {};
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

Result<void> run(Output& output, const RebaseRequest& request) {
  ImageProgress progress(output, request.progress && !request.quiet);
  if (!parse_cache_mode(request.cache)) return invalid("Invalid cache option: " + request.cache);
  if (!parse_cache_mode(request.source_cache)) return invalid("Invalid source cache option: " + request.source_cache);
  const image::OpenImage overlay = TRY(open_overlay(request));
  if (request.backing_format && !is_qemu_driver(*request.backing_format)) {
    return invalid(fmt::format("Invalid format name: '{}'", *request.backing_format));
  }
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
