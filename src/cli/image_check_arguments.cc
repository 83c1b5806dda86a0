#include "cli/image_check_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "cli/image_command.h"

namespace varve::cli {

namespace {

// "driver=qcow2,file.filename=NAME": a comma in a value is written twice. What a check does not need (a secret, a
// cache size) is left aside.
bool take_image_options(CheckArguments& arguments, const std::string& list) {
  std::vector<std::string> items(1);
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] != ',') {
      items.back() += list[i];
    } else if (i + 1 < list.size() && list[i + 1] == ',') {
      items.back() += list[i++];
    } else {
      items.emplace_back();
    }
  }
  arguments.path.clear();
  for (const std::string& item : items) {
    const size_t equals = item.find('=');
    const std::string key = item.substr(0, equals);
    const std::string value = equals == std::string::npos ? "on" : item.substr(equals + 1);
    if (key == "driver") {
      arguments.format = value;
    } else if (key == "file.filename" || key == "filename") {
      arguments.path = value;
    } else if (key == "force-share") {
      arguments.share = value == "on";
    }
  }
  return !arguments.path.empty();
}

}  // namespace

ParsedCheck parse_check_arguments(const ImageCall& call) {
  Output& output = call.output;
  const ParsedImageArguments parsed = parse_image_arguments(call, "hf:r:T:qpU",
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
  bool image_options = false;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'h':
        result.ended = image_help(output);
        return result;
      case 'f':
        arguments.format = value;
        break;
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
      case 'U':
        arguments.share = true;
        break;
      case kOptionDeep:
        arguments.deep = true;
        break;
      case kOptionImageOpts:
        image_options = true;
        break;
      default:
        break;  // -p: the bar is there wherever there is a terminal; --object: no secret is needed to check
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
  arguments.path = parsed.operands[0];
  if (image_options) {
    const std::optional<std::string> given = arguments.format;
    if (given) return fail("--image-opts and --format are mutually exclusive");
    if (!take_image_options(arguments, parsed.operands[0])) {
      return fail(
          fmt::format("Could not open '{}': A block device must be specified for \"file\"", parsed.operands[0]));
    }
  } else if (arguments.path.starts_with("file:")) {
    arguments.path = arguments.path.substr(5);
  }
  return result;
}

}  // namespace varve::cli
