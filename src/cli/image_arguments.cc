#include "cli/image_arguments.h"

#include <fmt/format.h>

#include <cerrno>

#include "base/units.h"

namespace varve::cli {

std::string command_name(const Output& output) {
  return output.program() == "varve" ? "varve image" : output.program();
}

ImageExit usage_failure(Output& output, const std::string& text) {
  output.error(text);
  output.note(fmt::format("Try '{} --help' for more information\n", command_name(output)));
  return {1};
}

std::optional<uint64_t> size_argument(Output& output, const std::string& what, const std::string& text, uint64_t least,
                                      uint64_t most) {
  const Result<uint64_t> size = parse_size(text);
  if (size && *size >= least && *size <= most) return *size;
  if (size || size.error().sys_errno == ERANGE) {
    output.error(fmt::format("Invalid {} specified. Must be between {} and {}.", what, least, most));
  } else {
    output.error(fmt::format("Invalid {} specified. You may use k, M, G, T, P or E suffixes for", what));
    output.error("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
  }
  return std::nullopt;
}

ParsedImageArguments parse_image_arguments(const ImageCall& call, const std::string& letters,
                                           const std::vector<ImageLongOption>& long_options) {
  std::vector<std::string> words = call.arguments;
  words.insert(words.begin(), call.output.program());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<option> table;
  for (const ImageLongOption& o : long_options) {
    table.push_back({o.name, o.has_value ? required_argument : no_argument, nullptr, o.id});
  }
  if (call.output.program() == "varve") table.push_back({"dry-run", no_argument, nullptr, kOptionDryRun});
  table.push_back({nullptr, 0, nullptr, 0});

  ParsedImageArguments parsed;
  parsed.dry_run = {.wanted = call.dry_run, .json = call.json};
  const int argc = static_cast<int>(words.size());
  const std::string short_options = ":" + letters;  // the colon: report a missing value apart
  optind = 0;                                       // glibc: start anew
  for (;;) {
    const int id = ::getopt_long(argc, argv.data(), short_options.c_str(), table.data(), nullptr);
    if (id == -1) break;
    if (id == ':' || id == '?') {
      const char* word = argv[static_cast<size_t>(optind - 1)];
      parsed.failed = usage_failure(
          call.output, fmt::format("{} option '{}'", id == ':' ? "missing argument for" : "unrecognized", word));
      return parsed;
    }
    if (id == kOptionDryRun) {
      parsed.dry_run.wanted = true;
      continue;
    }
    parsed.options.push_back({id, optarg != nullptr ? optarg : ""});
  }
  for (int i = optind; i < argc; ++i) parsed.operands.emplace_back(argv[static_cast<size_t>(i)]);
  return parsed;
}

}  // namespace varve::cli
