// `image commit`: what an overlay holds goes into its backing file.
#include <fmt/format.h>
#include <sys/stat.h>

#include <cstring>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/image_progress.h"
#include "cli/image_source.h"
#include "cli/interrupt.h"
#include "image/backing_name.h"
#include "image/commit.h"
#include "image/open.h"
#include "image/space_needed.h"
#include "io/free_space.h"

namespace varve::cli {

namespace {

struct CommitRequest {
  std::string path;
  SourceArguments source;
  std::optional<std::string> base;
  std::string cache = "writeback";
  uint64_t bytes_per_second = 0;
  bool keep = false;  // -d, -b: the overlay is not emptied
  bool progress = false;
  bool quiet = false;
};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

Result<image::OpenImage> open_chain(const CommitRequest& request, std::optional<size_t> base) {
  return open_source(request.path, request.source,
                     {.use = base ? image::Use::kWrite : image::Use::kInspect, .writable_layer = base});
}

// Which layer -b means.
Result<size_t> find_base(const CommitRequest& request) {
  const image::OpenImage chain = TRY(open_chain(request, std::nullopt));
  const std::vector<image::Layer>& layers = chain.layers();
  if (!request.base) {
    if (layers.size() < 2) return invalid("Image does not have a backing file");
    return size_t{1};
  }
  // As the name of a backing file in the layer above would be read.
  for (size_t i = 1; i < layers.size(); ++i) {
    struct stat st = {};
    const std::string path = image::resolve_backing_name(layers[i - 1].path, *request.base);
    if (::stat(path.c_str(), &st) == 0 && layers[i].file == image::FileIdentity{st.st_dev, st.st_ino}) return i;
  }
  return invalid(fmt::format("Did not find '{}' in the backing chain of '{}'", *request.base, request.path));
}

// On a chain that is open to rehearse it. Guest data is counted, and not copied.
Result<Plan> plan_of(const CommitRequest& request, const image::OpenImage& chain, size_t base,
                     const image::CommitNeeds& needs) {
  const std::string& base_path = chain.layers()[base].path;
  Plan plan = begin_image_plan(fmt::format("commit {} into {}", request.path, base_path), chain);
  plan.checks.push_back(fmt::format("{} can be written, and nobody uses it", base_path));
  if (needs.grows_to != 0) {
    TRY(chain.devices()[base]->resize(needs.grows_to));
    plan.steps.push_back(fmt::format("enlarge the disk in {} to {} bytes", base_path, needs.grows_to));
  }
  if (needs.data_bytes != 0)
    plan.steps.push_back(fmt::format("write {} of data into {}; {} of it has no place there yet",
                                     bytes_text(needs.data_bytes), base_path, bytes_text(needs.place_bytes)));
  if (needs.zero_bytes != 0)
    plan.steps.push_back(fmt::format("make {} zero in {}", bytes_text(needs.zero_bytes), base_path));
  if (!request.keep && chain.qcow2() != nullptr) {
    TRY(chain.qcow2()->make_empty());
    plan.steps.push_back(fmt::format("empty {}: what it held shows through from {} then", request.path, base_path));
  } else {
    plan.notes.push_back(fmt::format("{} keeps what it holds", request.path));
  }
  plan.notes.push_back(
      fmt::format("other images that have {} as their backing file would show something else then", base_path));
  return plan;
}

Result<void> commit(Output& output, const CommitRequest& request, ImageProgress& progress) {
  const size_t base = TRY(find_base(request));
  const image::OpenImage chain = TRY(open_chain(request, base));
  const DryRun& dry_run = request.source.dry_run;
  if (!request.source.as_qemu_img || dry_run.wanted) {
    const image::CommitNeeds needs = TRY(image::commit_needs(chain.devices(), base));
    TRY(check_space(chain.data_file(), needs.new_bytes));
    if (dry_run.wanted) {
      print_image_plan(output, dry_run, TRY(plan_of(request, chain, base, needs)));
      return {};
    }
  }
  const InterruptWatch watch;
  image::CommitOptions options;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.interrupted = interrupted;
  options.bytes_per_second = request.bytes_per_second;
  Result<void> copied = image::commit_to(chain.devices(), base, options);
  if (!copied) {
    Error error = std::move(copied).error();
    if (error.kind == ErrorKind::kInterrupted) {
      error.message =
          fmt::format("interrupted: '{}' shows what it showed; the same command does the rest", request.path);
    } else if (error.sys_errno != 0) {
      error.message = fmt::format("Block job failed: {}", std::strerror(error.sys_errno));
    }
    return error;
  }
  if (request.keep) return {};
  if (chain.qcow2() == nullptr) return {};  // raw images have no backing file
  Result<void> emptied = chain.qcow2()->make_empty();
  if (!emptied) {
    emptied.error().message = fmt::format("Could not empty {}: {}", request.path, emptied.error().message);
  }
  return emptied;
}

}  // namespace

ImageExit image_commit(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "f:ht:b:dpqr:",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"rate-limit", true, 'r'}});
  if (parsed.failed) return *parsed.failed;
  CommitRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 't':
        request.cache = value;
        break;
      case 'b':
        request.base = value;
        request.keep = true;  // the image between would show through
        break;
      case 'd':
        request.keep = true;
        break;
      case 'p':
        request.progress = true;
        break;
      case 'q':
        request.quiet = true;
        break;
      default: {
        const std::optional<uint64_t> rate = size_argument(call.output, "rate limit", value);
        if (!rate) return {1};
        request.bytes_per_second = *rate;
      }
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  if (!parse_cache_mode(request.cache)) return image_failure(call.output, "Invalid cache option: " + request.cache);
  request.source.bypass_cache = parse_cache_mode(request.cache)->direct;
  Result<void> done;
  {
    ImageProgress progress(call.output, request.progress && !request.quiet && !parsed.dry_run.wanted);
    done = commit(call.output, request, progress);
    if (done) progress.finish();
  }
  if (!done) return image_failure(call.output, done.error().message, &done.error());
  if (!request.quiet && !parsed.dry_run.wanted) call.output.print("Image committed.\n");
  return {0};
}

}  // namespace varve::cli
