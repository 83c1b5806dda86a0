// `image create`: qemu-img's.
#include <fmt/format.h>

#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/image_plan.h"
#include "cli/image_source.h"
#include "cli/new_image.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"
#include "image/open.h"

namespace varve::cli {

namespace {

struct CreateRequest {
  std::string path;
  std::string format = "raw";
  ImageObjects objects;
  std::optional<std::string> size;
  std::optional<std::string> options;  // -o
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  bool unsafe = false;
  bool quiet = false;
  DryRun dry_run;
};

// Opens the backing file, to see that it can be opened, and how large the disk in it is. No locks are taken, as by
// qemu-img: nothing of its contents is read, and it may well be in use. Without a format, it is probed: to tell the
// user what to declare, not to make use of it.
Result<image::OpenImage> open_backing(const CreateRequest& request, const std::string& backing_file,
                                      const std::optional<std::string>& format) {
  std::optional<image::Format> known;
  if (format) known = image::format_of_name(*format);
  if (format && !known) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("Unknown driver '{}'", *format));
  }
  image::OpenFailure failure;
  Result<image::OpenImage> opened = image::open_image(
      image::resolve_backing_name(request.path, backing_file),
      {.format = known, .use = image::Use::kInspect, .share_with_writers = true, .open_backing = format.has_value()},
      &failure);
  if (!opened) opened.error().message = qemu_open_reason(failure);
  return opened;
}

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

// Puts -b and -F among the options and checks what does not need the backing file itself.
Result<void> take_backing(const CreateRequest& request, ImageOptions& options) {
  if (request.backing_file) {
    if (!options.knows("backing_file")) {
      return invalid(fmt::format("Backing file not supported for file format '{}'", request.format));
    }
    TRY(options.set("backing_file", *request.backing_file));
  }
  if (request.backing_format) {
    if (!options.knows("backing_fmt")) {
      return invalid(fmt::format("Backing file format not supported for file format '{}'", request.format));
    }
    TRY(options.set("backing_fmt", *request.backing_format));
  }
  const std::optional<std::string> backing_file = options.text("backing_file");
  if (!backing_file) return {};
  if (backing_file->empty()) return invalid("Expected backing file name, got empty string");
  if (*backing_file == request.path) {
    return invalid("Error: Trying to create an image with the same filename as the backing file");
  }
  return {};
}

Result<void> complete(const CreateRequest& request, ImageOptions& options) {
  if (request.options) TRY(options.parse(*request.options));
  if (request.size && options.text("size")) return invalid("The image size must be specified only once");
  if (request.size) TRY(options.set("size", *request.size));
  TRY(take_backing(request, options));
  const std::optional<std::string> backing_file = options.text("backing_file");
  const std::optional<std::string> backing_format = options.text("backing_fmt");
  std::string hint;
  if (backing_file && !request.unsafe) {
    Result<image::OpenImage> backing = open_backing(request, *backing_file, backing_format);
    if (!backing) {
      backing.error().message += "\nCould not open backing image.";
      return std::move(backing).error();
    }
    hint = fmt::format("\nDetected format of {}.", name_of(backing->format()));
    if (!options.text("size")) TRY(options.set("size", fmt::format("{}", TRY(backing->device()->size()))));
  }
  if (backing_file && !backing_format) return invalid("Backing file specified without backing format" + hint);
  if (!options.text("size")) return invalid("Image creation needs a size parameter");
  return {};
}

Result<Plan> plan_of(const CreateRequest& request, const ImageOptions& options) {
  Plan plan{.title = fmt::format("create {}", request.path), .checks = {}, .steps = {}, .notes = {}};
  TRY(check_target(plan, request.path));
  TRY(check_new_image(options, request.objects));
  const std::string data_file = options.text("data_file").value_or("");
  if (!data_file.empty()) {
    TRY(check_target(plan, data_file));
    plan.steps.push_back(fmt::format("make the external data file {}", data_file));
  }
  plan.steps.push_back(
      fmt::format("make a {} image of a disk of {}", request.format, bytes_text(options.number("size").value_or(0))));
  plan.steps.push_back(fmt::format("with {}", options.formatted()));
  return plan;
}

ImageExit create(Output& output, const CreateRequest& request) {
  const std::optional<image::Format> format = image::format_of_name(request.format);
  if (!format) return image_failure(output, fmt::format("{}: {}", request.path, not_created_reason(request.format)));
  const std::optional<std::string> protocol = image::protocol_of(request.path);
  if (protocol && *protocol != "file") {
    return image_failure(output, fmt::format("{}: {}", request.path, not_created_by_reason(*protocol)));
  }
  ImageOptions options(*format);
  Result<void> completed = complete(request, options);
  if (!completed) {
    return image_failure(output, fmt::format("{}: {}", request.path, completed.error().message), &completed.error());
  }
  if (request.dry_run.wanted) {
    Result<Plan> plan = plan_of(request, options);
    if (plan) return print_image_plan(output, request.dry_run, *plan);
    return image_failure(output, fmt::format("{}: {}", request.path, plan.error().message), &plan.error());
  }
  if (!request.quiet) {
    output.print(fmt::format("Formatting '{}', fmt={} {}\n", request.path, request.format, options.formatted()));
  }
  Result<void> created = create_image(output, request.path, options, request.objects);
  if (!created)
    return image_failure(output, fmt::format("{}: {}", request.path, created.error().message), &created.error());
  return {0};
}

}  // namespace

ImageExit image_create(const ImageCall& call) {
  const ParsedImageArguments parsed =
      parse_image_arguments(call, "F:b:f:ho:qu", {{"help", false, 'h'}, {"object", true, kOptionObject}});
  if (parsed.failed) return *parsed.failed;
  CreateRequest request;
  request.dry_run = parsed.dry_run;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'h':
        return image_help(call.output);
      case 'F':
        request.backing_format = value;
        break;
      case 'b':
        request.backing_file = value;
        break;
      case 'f':
        request.format = value;
        break;
      case 'o':
        if (!is_option_list(value)) return image_failure(call.output, "Invalid option list: " + value);
        request.options = request.options ? *request.options + "," + value : value;
        break;
      case 'q':
        request.quiet = true;
        break;
      case 'u':
        request.unsafe = true;
        break;
      default:
        if (Result<void> added = request.objects.add(value); !added) return image_failure(call.output, added.error());
    }
  }
  if (request.options && asks_for_help(*request.options)) {
    const std::optional<image::Format> format = image::format_of_name(request.format);
    if (!format) return image_failure(call.output, not_created_reason(request.format));
    call.output.print(option_help(*format, !parsed.operands.empty()));
    return {0};
  }
  if (parsed.operands.empty()) return usage_failure(call.output, "Expecting image file name");
  request.path = parsed.operands[0];
  if (parsed.operands.size() > 1) {
    const std::optional<uint64_t> size = size_argument(call.output, "image size", parsed.operands[1]);
    if (!size) return {1};
    request.size = fmt::format("{}", *size);
  }
  if (parsed.operands.size() > 2) return usage_failure(call.output, "Unexpected argument: " + parsed.operands[2]);
  return create(call.output, request);
}

}  // namespace varve::cli
