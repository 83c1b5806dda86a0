// `image measure`: how large the file would be that `convert` or `create` makes.
#include <fmt/format.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "cli/image_command.h"
#include "cli/image_encryption.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/image_source.h"
#include "cli/qemu_drivers.h"
#include "cli/qemu_json.h"
#include "cli/snapshot_selector.h"
#include "image/measure.h"

namespace varve::cli {

namespace {

struct MeasureRequest {
  std::optional<std::string> path;
  SourceArguments source;
  std::string target_format = "raw";
  std::optional<std::string> options;   // -o
  std::optional<SnapshotSelector> snapshot;  // -l
  std::optional<uint64_t> size;
  bool json = false;
};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

Result<uint64_t> luks_header_bytes(const ImageOptions& options, const ImageObjects& objects) {
  const std::optional<EncryptionOptions> encryption = TRY(encryption_options(options));
  TRY(passphrase_of(options, objects));
  TRY(crypto::check_cipher_spec(encryption->luks->cipher));
  return crypto::luks_header_area(encryption->luks->cipher);
}

Result<image::MeasureTarget> find_target(const ImageOptions& options, const ImageObjects& objects) {
  image::MeasureTarget target;
  target.format = options.format();
  if (target.format == image::Format::kLuks) target.luks_header_bytes = TRY(luks_header_bytes(options, objects));
  if (target.format != image::Format::kQcow2) return target;
  target.cluster_size = *options.number("cluster_size");
  target.extended_l2 = options.flag("extended_l2");
  if (!std::has_single_bit(target.cluster_size) || target.cluster_size < 512 || target.cluster_size > 2u << 20)
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  if (target.extended_l2 && target.cluster_size < 16384)
    return invalid("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  target.has_backing = options.text("backing_file").has_value();
  const std::string preallocation = options.text("preallocation").value_or("off");
  target.preallocates_data = preallocation == "falloc" || preallocation == "full";
  if (!target.preallocates_data && preallocation != "off" && preallocation != "metadata")
    return invalid("invalid parameter value: " + preallocation);
  const std::string compat = options.text("compat").value_or("1.1");
  if (compat == "0.10" || compat == "v2") {
    target.version = 2;
  } else if (compat != "1.1" && compat != "v3") {
    return invalid(fmt::format("Invalid compatibility level: '{}'", compat));
  }
  const uint64_t bits = *options.number("refcount_bits");
  if (!std::has_single_bit(bits) || bits > 64)
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  if (bits != 16 && target.version < 3) {
    return invalid(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)");
  }
  target.refcount_bits = static_cast<uint32_t>(bits);
  // Anything else adds nothing, and is not looked at.
  if (options.text("encrypt.format") == "luks") target.luks_header_bytes = TRY(luks_header_bytes(options, objects));
  return target;
}

ImageExit print(Output& output, const image::Measurement& m, bool json) {
  if (json) {
    nlohmann::ordered_json document = nlohmann::ordered_json::object();
    if (m.bitmaps) document["bitmaps"] = *m.bitmaps;
    document["required"] = m.required;
    document["fully-allocated"] = m.fully_allocated;
    output.print(qemu_json(document));
    return {0};
  }
  output.print(fmt::format("required size: {}\nfully allocated size: {}\n", m.required, m.fully_allocated));
  if (m.bitmaps) output.print(fmt::format("bitmaps size: {}\n", *m.bitmaps));
  return {0};
}

ImageExit measure(Output& output, const MeasureRequest& request) {
  std::optional<image::OpenImage> image;
  std::optional<size_t> snapshot;
  if (request.path) {
    Result<image::OpenImage> opened = open_source(*request.path, request.source, {.use = image::Use::kRead});
    if (!opened) return image_failure(output, opened.error());
    image = std::move(*opened);
    if (request.snapshot) {
      const Result<size_t> found = find_snapshot(*image, *request.snapshot);
      if (!found) return image_failure(output, found.error().message, &found.error());
      snapshot = *found;
    }
  }
  const std::optional<image::Format> format = image::format_of_name(request.target_format);
  if (!format) return image_failure(output, not_created_reason(request.target_format));
  ImageOptions options(*format);
  if (request.options) {
    if (Result<void> parsed = options.parse(*request.options); !parsed) {
      image_failure(output, parsed.error().message);
      return image_failure(output, fmt::format("Invalid options for file format '{}'", request.target_format));
    }
  }
  const Result<image::MeasureTarget> target = find_target(options, request.source.objects);
  if (!target) return image_failure(output, target.error().message);
  const Result<image::Measurement> measured =
      image ? image::measure_image(*image, snapshot, *target) : image::measure_size(*request.size, *target);
  if (!measured) return image_failure(output, measured.error().message, &measured.error());
  return print(output, *measured, request.json);
}

}  // namespace

ImageExit image_measure(const ImageCall& call) {
  constexpr int kSize = 1000;
  ParsedImageArguments parsed = parse_image_arguments(call, "hf:l:o:O:U",
                                                            {{"help", false, 'h'},
                                                             {"image-opts", false, kOptionImageOpts},
                                                             {"object", true, kOptionObject},
                                                             {"output", true, kOptionOutput},
                                                             {"size", true, kSize},
                                                             {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  MeasureRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  request.json = call.json;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'l':
        request.snapshot = parse_snapshot_selector(call.output, value);
        if (!request.snapshot) return {1};
        break;
      case 'o':
        if (!is_option_list(value)) return image_failure(call.output, "Invalid option list: " + value);
        request.options = request.options ? *request.options + "," + value : value;
        break;
      case 'O':
        request.target_format = value;
        break;
      case kOptionOutput:
        if (value != "json" && value != "human")
          return image_failure(call.output, "--output must be used with human or json as argument.");
        request.json = value == "json";
        break;
      default:
        request.size = size_argument(call.output, "image size", value);
        if (!request.size) return {1};
    }
  }
  if (parsed.operands.size() > 1) return image_failure(call.output, "At most one filename argument is allowed.");
  if (!parsed.operands.empty()) request.path = parsed.operands[0];
  if (!request.path && (request.source.image_opts || request.source.format || request.snapshot))
    return image_failure(call.output, "--image-opts, -f, and -l require a filename argument.");
  if (!request.path && !request.size)
    return image_failure(call.output, "Either --size N or one filename must be specified.");
  if (request.path && request.size)
    return image_failure(call.output, "--size N cannot be used together with a filename.");
  return measure(call.output, request);
}

}  // namespace varve::cli
