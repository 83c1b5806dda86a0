#include "cli/image_check_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace varve::cli {

ParsedCheck parse_check_arguments(const ImageCall& call) {
  Output& output = call.output;
  ParsedImageArguments parsed = parse_image_arguments(call, "hf:r:T:qpU",
                                                            {{"help", false, 'h'},
                                                             {"format", true, 'f'},
                                                             {"repair", true, 'r'},
                                                             {"output", true, kOptionOutput},
                                                             {"object", true, kOptionObject},
                                                             {"image-opts", false, kOptionImageOpts},
                                                             {"force-share", false, 'U'},
                                                             {"deep", false, kOptionDeep}});
  ParsedCheck result;
  if (parsed.failed) {
    result.ended = parsed.failed;
    return result;
  }
  CheckArguments& arguments = result.arguments;
  std::optional<std::string> format;
  std::string cache = "writeback";
  SourceArguments& source = arguments.source;
  if (const auto ended = take_source_arguments(call, parsed, source)) {
    result.ended = ended;
    return result;
  }
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'r':
        if (value != "leaks" && value != "all") {
          result.ended =
              usage_failure(output, fmt::format("Unknown option value for -r (expecting 'leaks' or 'all'): {}", value));
          return result;
        }
        arguments.repair = value == "all" ? check::Repair::kAll : check::Repair::kLeaks;
        break;
      case kOptionOutput:
        format = value;
        break;
      case 'T':
        cache = value;
        break;
      case 'q':
        arguments.quiet = true;
        arguments.progress = false;
        break;
      case kOptionDeep:
        arguments.deep = true;
        break;
      default:
        break;  // -p: the bar is there wherever there is a terminal
    }
  }
  if (parsed.operands.size() != 1) {
    result.ended = usage_failure(output, "Expecting one image file name");
    return result;
  }
  const auto fail = [&](const std::string& text) {
    output.error(text);
    result.ended = ImageExit{1};
    return result;
  };
  if (format && *format != "json" && *format != "human") {
    return fail("--output must be used with human or json as argument.");
  }
  arguments.json = format == "json";
  constexpr std::array<std::string_view, 6> kCacheModes = {"none",      "off",    "directsync",
                                                           "writeback", "unsafe", "writethrough"};
  if (std::ranges::find(kCacheModes, cache) == kCacheModes.end()) {
    return fail("Invalid source cache option: " + cache);
  }
  const Result<ImageSource> found = find_source(parsed.operands[0], source);
  if (!found) return fail(found.error().message);
  arguments.name = parsed.operands[0];
  arguments.path = found->path;
  arguments.format = found->format;
  arguments.filters = found->filters;
  arguments.share = source.share;
  if (arguments.path.starts_with("file:")) arguments.path = arguments.path.substr(5);
  return result;
}

}  // namespace varve::cli
