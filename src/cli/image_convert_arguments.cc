#include "cli/image_convert_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/qemu_drivers.h"

namespace varve::cli {

namespace {

constexpr uint64_t kMaxSparseSize = 16u << 20;

bool is_coroutine_count(const std::string& text) {
  unsigned count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  return error == std::errc() && end == text.data() + text.size() && count >= 1 && count <= 16;
}

class Parser {
 public:
  explicit Parser(const ImageCall& call) : output_(call.output) {}

  ConvertArguments parse(const ImageCall& call) {
    ParsedImageArguments parsed = parse_image_arguments(call, "hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:",
                                                              {{"help", false, 'h'},
                                                               {"source-image-opts", false, kOptionImageOpts},
                                                               {"object", true, kOptionObject},
                                                               {"image-opts", false, kOptionImageOpts},
                                                               {"force-share", false, 'U'},
                                                               {"target-image-opts", false, kOptionTargetImageOpts},
                                                               {"salvage", false, kOptionSalvage},
                                                               {"target-is-zero", false, kOptionTargetIsZero},
                                                               {"bitmaps", false, kOptionBitmaps},
                                                               {"rate-limit", true, 'r'},
                                                               {"skip-broken-bitmaps", false, kOptionSkipBroken}});
    if (parsed.failed) return finish(*parsed.failed);
    if (const auto ended = take_source_arguments(call, parsed, request_.source)) return finish(*ended);
    for (const ParsedImageOption& option : parsed.options) {
      if (const std::optional<ImageExit> exit = take(option)) return finish(*exit);
    }
    return complete(parsed.operands);
  }

 private:
  static ConvertArguments finish(ImageExit exit) { return {{}, exit}; }
  ImageExit fail(const std::string& message) { return image_failure(output_, message); }

  std::optional<ImageExit> take(const ParsedImageOption& option) {
    const std::string& value = option.value;
    switch (option.id) {
      case 'O':
        request_.target_format = value;
        break;
      case 'B':
        request_.backing_file = value;
        break;
      case 'F':
        request_.backing_format = value;
        break;
      case 'o':
        if (!is_option_list(value)) return fail("Invalid option list: " + value);
        request_.options = request_.options ? *request_.options + "," + value : value;
        break;
      case 'l':
        request_.snapshot = parse_snapshot_selector(output_, value);
        if (!request_.snapshot) return ImageExit{1};
        break;
      case 'S':
        return take_sparse_size(value);
      case 'p':
        request_.progress = true;
        break;
      case 'q':
        request_.quiet = true;
        break;
      case 'n':
        request_.skip_create = true;
        break;
      case 'C':
        request_.offload = true;
        break;
      case 't':
        request_.cache = value;
        break;
      case 'T':
        request_.source_cache = value;
        break;
      case 'W':
        break;  // the order of writes is ours anyhow
      case 'm':
        if (!is_coroutine_count(value)) {
          return fail("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16");
        }
        break;
      case kOptionTargetIsZero:
        request_.target_is_zero = true;
        break;
      case 'c':
        request_.compress = true;
        break;
      case 'r': {
        const std::optional<uint64_t> rate = size_argument(output_, "rate limit", value);
        if (!rate) return ImageExit{1};
        request_.bytes_per_second = *rate;
        break;
      }
      case kOptionTargetImageOpts:
        request_.target_image_opts = true;
        break;
      case kOptionSalvage:
        request_.salvage = true;
        break;
      case kOptionBitmaps:
        request_.bitmaps = true;
        break;
      default:
        request_.skip_broken_bitmaps = true;
    }
    return std::nullopt;
  }

  std::optional<ImageExit> take_sparse_size(const std::string& value) {
    const std::optional<uint64_t> size = size_argument(output_, "buffer size for sparse output", value);
    if (!size) return ImageExit{1};
    if (*size % 512 != 0 || *size > kMaxSparseSize) {
      return fail(
          fmt::format("Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
                      "{}. Select 0 to disable sparse detection (fully allocates output).",
                      kMaxSparseSize));
    }
    request_.sparse_size = *size;
    request_.sparse_given = true;
    return std::nullopt;
  }

  ConvertArguments complete(const std::vector<std::string>& operands) {
    if (request_.skip_broken_bitmaps && !request_.bitmaps)
      return finish(fail("Use of --skip-broken-bitmaps requires --bitmaps"));
    if (request_.offload && request_.compress) return finish(fail("Cannot enable copy offloading when -c is used"));
    if (request_.offload && request_.sparse_given) return finish(fail("Cannot enable copy offloading when -S is used"));
    if (request_.offload && request_.salvage) return finish(fail("Cannot use copy offloading in salvaging mode"));
    if (request_.target_image_opts && !request_.skip_create)
      return finish(fail("--target-image-opts requires use of -n flag"));
    if (request_.skip_create && request_.options) {
      return finish(fail("-o has no effect when skipping image creation"));
    }
    if (request_.target_is_zero && !request_.skip_create) {
      return finish(fail("--target-is-zero requires use of -n flag"));
    }
    if (!request_.target_format && !request_.target_image_opts) request_.target_format = "raw";
    if (request_.options && asks_for_help(*request_.options)) {
      const std::optional<image::Format> format = image::format_of_name(*request_.target_format);
      if (!format) return finish(fail(not_created_reason(*request_.target_format)));
      output_.print(option_help(*format, operands.size() > 1));
      return finish({0});
    }
    if (operands.size() < 2) return finish(fail("Must specify image file name"));
    if (!parse_cache_mode(request_.source_cache))
      return finish(fail("Invalid source cache option: " + request_.source_cache));
    request_.source.bypass_cache = parse_cache_mode(request_.source_cache)->direct;
    if (!parse_cache_mode(request_.cache)) return finish(fail("Invalid cache option: " + request_.cache));
    request_.sources.assign(operands.begin(), operands.end() - 1);
    request_.target = operands.back();
    if (request_.quiet) request_.progress = false;
    return {std::move(request_), std::nullopt};
  }

  Output& output_;
  ConvertRequest request_;
};

}  // namespace

ConvertArguments parse_convert_arguments(const ImageCall& call) {
  return Parser(call).parse(call);
}

}  // namespace varve::cli
