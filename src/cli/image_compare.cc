// `image compare`: whether two disks hold the same; exit codes 0 (yes), 1 (no), 2 (not opened), 3 and 4 (not read).
#include <fmt/format.h>

#include <algorithm>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_progress.h"
#include "cli/image_source.h"
#include "image/compare.h"

namespace varve::cli {

namespace {

struct CompareRequest {
  std::string paths[2];
  SourceArguments source;  // of the first
  std::optional<std::string> second_format;
  bool strict = false;
  bool progress = false;
  bool quiet = false;
};

ImageExit compare(Output& output, const CompareRequest& request) {
  std::vector<image::OpenImage> images;
  for (size_t i = 0; i < 2; ++i) {
    SourceArguments source = request.source;
    if (i == 1) source.format = request.second_format;
    Result<image::OpenImage> opened = open_source(request.paths[i], source, {.use = image::Use::kRead});
    if (!opened) return {image_failure(output, opened.error()).code + 1};
    images.push_back(std::move(*opened));
  }
  const auto say = [&](const std::string& text) {
    if (!request.quiet) output.print(text);
  };
  ImageProgress progress(output, request.progress && !request.quiet);
  image::CompareOptions options{.strict = request.strict};
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  Result<image::Comparison> result = image::compare(images[0], images[1], options);
  if (!result) return {image_failure(output, result.error().message, &result.error()).code + 2};
  const image::Comparison& c = *result;
  const auto warn_of_size = [&] {
    if (c.reached_end_of_shorter) say("Warning: Image size mismatch!\n");
  };
  const bool failed = c.failure.has_value();
  if (!failed) warn_of_size();
  const std::string& path = request.paths[c.image];
  switch (c.kind) {
    case image::Comparison::Kind::kEqual: {
      const Result<uint64_t> first = images[0].device()->size();
      const Result<uint64_t> second = images[1].device()->size();
      if (first && second && *first != *second) say("Warning: Image size mismatch!\n");
      say("Images are identical.\n");
      return {0};
    }
    case image::Comparison::Kind::kSizeMismatch:
      say("Strict mode: Image size mismatch!\n");
      return {1};
    case image::Comparison::Kind::kStatusMismatch:
      say(fmt::format("Strict mode: Offset {} block status mismatch!\n", c.offset));
      return {1};
    case image::Comparison::Kind::kContentMismatch:
      say(fmt::format("Content mismatch at offset {}!\n", c.offset));
      return {1};
    case image::Comparison::Kind::kReadFailed:
      image_failure(output,
                    fmt::format("Error while reading offset {} of {}: {}", c.offset, path, errno_text(*c.failure)),
                    &*c.failure);
      warn_of_size();
      return {4};
    case image::Comparison::Kind::kMapFailed:
      image_failure(output, fmt::format("Sector allocation test failed for {}", path), &*c.failure);
      warn_of_size();
      return {3};
  }
  return {4};
}

}  // namespace

ImageExit image_compare(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "hf:F:T:pqsU",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  CompareRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return {ended->code * 2};
  std::string cache = "writeback";
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'F':
        request.second_format = value;
        break;
      case 'T':
        cache = value;
        break;
      case 'p':
        request.progress = true;
        break;
      case 'q':
        request.quiet = true;
        break;
      default:
        request.strict = true;
    }
  }
  if (parsed.operands.size() != 2) return usage_failure(call.output, "Expecting two image file names");
  request.paths[0] = parsed.operands[0];
  request.paths[1] = parsed.operands[1];
  if (!parse_cache_mode(cache)) {
    image_failure(call.output, "Invalid source cache option: " + cache);
    return {2};
  }
  request.source.bypass_cache = parse_cache_mode(cache)->direct;
  return compare(call.output, request);
}

}  // namespace varve::cli
