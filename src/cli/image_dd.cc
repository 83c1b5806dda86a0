// `image dd`: copies a stretch of a disk into a new image, block by block as dd(1) does; holes are written, too.
#include <fmt/format.h>

#include <climits>
#include <cstring>

#include "base/aligned_vector.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/image_source.h"
#include "cli/new_image.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"

namespace varve::cli {

namespace {

constexpr uint64_t kBuffer = uint64_t{1} << 20;

struct DdRequest {
  std::optional<std::string> input;
  std::optional<std::string> target;
  SourceArguments source;
  std::string target_format = "raw";
  uint64_t block_size = 512;
  std::optional<uint64_t> count;
  uint64_t skip = 0;
};

Result<void> create_target(Output& output, const DdRequest& request, image::Format format, uint64_t size) {
  ImageOptions options(format);
  TRY(options.set("size", fmt::format("{}", size)));
  return create_image(output, *request.target, options, {});
}

ImageExit copy(Output& output, BlockDevice& source, BlockDevice& target, uint64_t from, uint64_t end) {
  AlignedVector<std::byte> buffer(kBuffer);
  for (uint64_t at = from; at < end;) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(kBuffer, end - at));
    if (Result<void> read = source.read_at(at, piece); !read) {
      return image_failure(output, "error while reading from input image file: " + errno_text(read.error()),
                           &read.error());
    }
    if (Result<void> written = target.write_at(at - from, piece); !written) {
      return image_failure(output, "error while writing to output image file: " + errno_text(written.error()),
                           &written.error());
    }
    at += piece.size();
  }
  if (Result<void> flushed = target.flush(); !flushed) {
    return image_failure(output, "error while writing to output image file: " + errno_text(flushed.error()),
                         &flushed.error());
  }
  return {0};
}

ImageExit show_plan(Output& output, const DdRequest& request, uint64_t bytes) {
  Plan plan{.title = fmt::format("copy a stretch of {} to {}", *request.input, *request.target),
            .checks = {fmt::format("{} can be read", *request.input)},
            .steps = {},
            .notes = {}};
  if (const Result<void> possible = check_target(plan, *request.target); !possible)
    return image_failure(output, possible.error());
  plan.steps.push_back(fmt::format("make a {} image of a disk of {}", request.target_format, bytes_text(bytes)));
  plan.steps.push_back(fmt::format("copy {}, holes and all", bytes_text(bytes)));
  return print_image_plan(output, request.source.dry_run, plan);
}

ImageExit dd(Output& output, const DdRequest& request) {
  const Result<image::OpenImage> source = open_source(*request.input, request.source, {.use = image::Use::kRead});
  if (!source) return image_failure(output, source.error());
  const std::optional<image::Format> format = image::format_of_name(request.target_format);
  if (!format) {
    const std::string& name = request.target_format;
    return image_failure(output, is_qemu_driver(name) ? not_created_reason(name) : "Unknown file format");
  }
  if (const auto protocol = image::protocol_of(*request.target); protocol && *protocol != "file")
    return image_failure(output, not_created_by_reason(*protocol));
  const Result<uint64_t> whole = source->device()->size();
  if (!whole) return image_failure(output, fmt::format("Failed to get size for '{}'", *request.input));
  uint64_t end = *whole;
  if (request.count && *request.count <= INT64_MAX / request.block_size)
    end = std::min(end, *request.count * request.block_size);
  const bool behind = request.skip > INT64_MAX / request.block_size || request.skip * request.block_size > end;
  const uint64_t from = behind ? end : request.skip * request.block_size;
  if (request.source.dry_run.wanted) return show_plan(output, request, end - from);
  if (Result<void> created = create_target(output, request, *format, end - from); !created) {
    return image_failure(
        output, fmt::format("{}: error while creating output image: {}", *request.target, created.error().message),
        &created.error());
  }
  const Result<image::OpenImage> target =
      open_source(*request.target, {.format = request.target_format}, {.use = image::Use::kWrite});
  if (!target) return image_failure(output, target.error());
  if (behind) output.error(fmt::format("{}: cannot skip to specified offset", *request.input));
  return copy(output, *source->device(), *target->device(), from, end);
}

// False: printed.
bool take_operand(Output& output, const std::string& operand, DdRequest& request) {
  const size_t equals = operand.find('=');
  const std::string name = operand.substr(0, equals);
  if (equals == std::string::npos) {
    output.error("unrecognized operand " + name);
    return false;
  }
  const std::string value = operand.substr(equals + 1);
  if (name == "if") {
    request.input = value;
  } else if (name == "of") {
    request.target = value;
  } else if (name == "bs") {
    const auto size = size_argument(output, "bs", value, 1, INT_MAX);
    if (!size) return false;
    request.block_size = *size;
  } else if (name == "count") {
    request.count = size_argument(output, "count", value);
    return request.count.has_value();
  } else if (name == "skip") {
    const auto skip = size_argument(output, "skip", value);
    if (!skip) return false;
    request.skip = *skip;
  } else {
    output.error("unrecognized operand " + name);
    return false;
  }
  return true;
}

}  // namespace

ImageExit image_dd(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "f:O:hU",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  DdRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) request.target_format = value;  // -O
  for (const std::string& operand : parsed.operands)
    if (!take_operand(call.output, operand, request)) return {1};
  if (!request.input || !request.target) return image_failure(call.output, "Must specify both input and output files");
  return dd(call.output, request);
}

}  // namespace varve::cli
