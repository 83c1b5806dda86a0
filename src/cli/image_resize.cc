// `image resize`: a disk gets another size. What is cut off is gone; what is new reads as zeroes.
#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/image_plan.h"
#include "cli/image_source.h"
#include "image/resize.h"

namespace varve::cli {

namespace {

struct ResizeRequest {
  std::string path;
  std::string size;  // "+N", "-N", "N"
  SourceArguments source;
  image::NewSpace new_space = image::NewSpace::kSparse;
  bool shrink = false;
  bool quiet = false;
};

std::optional<image::NewSpace> new_space_of(const std::string& preallocation) {
  if (preallocation == "off") return image::NewSpace::kSparse;
  if (preallocation == "metadata") return image::NewSpace::kMetadata;
  if (preallocation == "falloc") return image::NewSpace::kReserved;
  if (preallocation == "full") return image::NewSpace::kWritten;
  return std::nullopt;
}

bool gives_every_cluster_a_place(const ResizeRequest& request) {
  return request.new_space == image::NewSpace::kReserved || request.new_space == image::NewSpace::kWritten;
}

// That the places of `growth` bytes more can be had, besides those that are free inside of the image.
Result<void> check_space_for(const image::OpenImage& image, uint64_t growth) {
  uint64_t inside = 0;  // places that it has already; of the disk's last cluster, too
  if (qcow2::Image* qcow2 = image.qcow2(); qcow2 != nullptr && !qcow2->header().has_data_file()) {
    const uint64_t cluster = qcow2->header().cluster_size();
    const uint64_t there = div_round_up(TRY(qcow2->file().size()), cluster);
    inside = (there - std::min(there, TRY(qcow2->used_clusters(there))) + 1) * cluster;
  }
  return check_space(image.data_file(), growth - std::min(growth, inside));
}

// After the rehearsal.
Plan plan_of(const ResizeRequest& request, const image::OpenImage& image, uint64_t present, uint64_t size) {
  Plan plan = begin_image_plan(fmt::format("resize {} from {} to {} bytes", request.path, present, size), image);
  if (size < present)
    plan.steps.push_back(fmt::format("cut off the disk's last {}: what they hold is gone", bytes_text(present - size)));
  if (size > present) plan.steps.push_back(fmt::format("add {} to the disk's end", bytes_text(size - present)));
  if (size == present) plan.notes.push_back("the disk has that size already");
  add_file_steps(plan, image);
  if (image.qcow2() != nullptr && !image.qcow2()->snapshots().empty())
    plan.notes.push_back(
        fmt::format("its {} snapshots keep the size that they have", image.qcow2()->snapshots().size()));
  return plan;
}

ImageExit resize(Output& output, const ResizeRequest& request) {
  const bool more = request.size.starts_with('+');
  const bool less = request.size.starts_with('-');
  ImageOptions parser(image::Format::kRaw);  // QEMU reads the number as a format option, and says so when it is none
  if (Result<void> read = parser.set("size", request.size.substr(more || less ? 1 : 0)); !read)
    return image_failure(output, read.error().message);
  const uint64_t number = *parser.number("size");

  const DryRun& dry_run = request.source.dry_run;
  const Result<image::OpenImage> image = open_source(request.path, request.source, {.use = image::Use::kWrite});
  if (!image) return image_failure(output, image.error());
  const Result<uint64_t> present = image->device()->size();
  if (!present) {
    return image_failure(output, "Failed to inquire current image length: " + errno_text(present.error()),
                         &present.error());
  }
  // Wraps as QEMU's signed sum does: what does not fit is not positive.
  const uint64_t size = more ? *present + number : less ? *present - number : number;
  if (static_cast<int64_t>(size) <= 0) return image_failure(output, "New image size must be positive");
  if (size <= *present && request.new_space != image::NewSpace::kSparse)
    return image_failure(output, "Preallocation can only be used for growing images");
  if (size < *present && !request.shrink) {
    image_failure(output, "Use the --shrink option to perform a shrink operation.");
    return image_failure(output,
                         "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before "
                         "performing such an operation, make sure there is no important data there.");
  }
  if (gives_every_cluster_a_place(request) && !request.source.as_qemu_img) {
    if (const auto enough = check_space_for(*image, size - *present); !enough)
      return space_failure(output, enough.error());
  }
  if (Result<void> done = image::resize(*image, size, request.new_space); !done)
    return image_failure(output, done.error().message, &done.error());
  if (dry_run.wanted) {
    if (const auto enough = check_space(*image); !enough) return space_failure(output, enough.error());
    return print_image_plan(output, dry_run, plan_of(request, *image, *present, size));
  }
  if (!request.quiet) output.print("Image resized.\n");
  return {0};
}

}  // namespace

ImageExit image_resize(const ImageCall& call) {
  enum Option : int { kPreallocation = 1000, kShrink };
  // The size comes last, and may look like an option.
  ImageCall rest = call;
  if (call.output.program() == "varve" && !rest.arguments.empty() && rest.arguments.back() == "--dry-run") {
    rest.arguments.pop_back();
    rest.dry_run = true;
  }
  ResizeRequest request;
  const bool wants_help = !rest.arguments.empty() && (rest.arguments[0] == "-h" || rest.arguments[0] == "--help");
  if (!wants_help) {
    if (rest.arguments.size() < 2) return usage_failure(call.output, "Not enough arguments");
    request.size = rest.arguments.back();
    rest.arguments.pop_back();
  }
  ParsedImageArguments parsed = parse_image_arguments(rest, "f:hq",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"preallocation", true, kPreallocation},
                                                       {"shrink", false, kShrink}});
  if (parsed.failed) return *parsed.failed;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'q':
        request.quiet = true;
        break;
      case kPreallocation: {
        const auto wanted = new_space_of(value);
        if (!wanted) return image_failure(call.output, fmt::format("Invalid preallocation mode '{}'", value));
        request.new_space = *wanted;
        break;
      }
      default:
        request.shrink = true;
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting image file name and size");
  request.path = parsed.operands[0];
  if (!gives_every_cluster_a_place(request)) {
    if (auto refused = refused_for_space(call.output, request, request.path, resize)) return *refused;
  }
  return resize(call.output, request);
}

}  // namespace varve::cli
