// `image info`: what is in an image. Opens the one file that is named and nothing that it names, unless
// --backing-chain asks for those; then each by the format that the overlay declares.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/image_command.h"
#include "cli/image_description.h"
#include "cli/image_errors.h"
#include "cli/image_source.h"
#include "cli/qemu_json.h"
#include "image/open.h"

namespace varve::cli {

namespace {

struct InfoRequest {
  std::string path;
  SourceArguments source;
  bool json = false;
  bool chain = false;
};

bool has_untrusted_bitmaps(const image::OpenImage& image) {
  if (image.qcow2() == nullptr || image.qcow2()->header().bitmaps) return false;
  return std::ranges::any_of(image.qcow2()->header().extensions, [](const qcow2::HeaderExtension& extension) {
    return extension.type == qcow2::kExtensionBitmaps;
  });
}

// Prints why, and returns nothing, where one of the images can't be opened.
std::optional<std::vector<image::OpenImage>> open_all(Output& output, const InfoRequest& request) {
  std::vector<image::OpenImage> images;
  std::vector<std::pair<dev_t, ino_t>> seen;
  std::string path = request.path;
  SourceArguments source = request.source;
  for (;;) {
    Result<image::OpenImage> opened = open_source(path, source, {.use = image::Use::kInspect, .open_backing = false});
    if (!opened) {
      image_failure(output, opened.error());
      return std::nullopt;
    }
    struct stat st = {};
    const bool known = ::fstat(opened->file().fd(), &st) == 0;
    const std::pair<dev_t, ino_t> id{st.st_dev, st.st_ino};
    if (known && std::ranges::find(seen, id) != seen.end()) {
      image_failure(output, fmt::format("Backing file '{}' creates an infinite loop.", path));
      return std::nullopt;
    }
    seen.push_back(id);
    images.push_back(std::move(*opened));
    const image::OpenImage& image = images.back();
    if (has_untrusted_bitmaps(image)) {
      output.error(
          fmt::format("warning: '{}' was changed by a program that keeps no bitmaps: those in it are no longer "
                      "valid",
                      path));
    }
    if (!request.chain || image.qcow2() == nullptr || !image.qcow2()->header().backing_file) return images;
    if (images.size() >= image::kMaxChainDepth) {
      image_failure(output, fmt::format("the backing chain of '{}' is longer than {} images", request.path,
                                        image::kMaxChainDepth));
      return std::nullopt;
    }
    Result<image::Layer> below = image::declared_backing(image.path(), image.qcow2()->header());
    if (!below) {
      image_failure(output, below.error().message, &below.error());
      return std::nullopt;
    }
    path = below->path;
    source.format = name_of(below->format);
    source.image_opts = false;
  }
}

ImageExit print_info(Output& output, const InfoRequest& request) {
  const std::optional<std::vector<image::OpenImage>> images = open_all(output, request);
  if (!images) return {1};
  std::string text;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const image::OpenImage& image : *images) {
    std::string name = image.path();
    const auto source = find_source(request.path, request.source);
    if (&image == images->data() && source && (source->key_secret || image.has_filters()))
      name = node_of(*source, image.format()).text();
    if (request.json) {
      Result<nlohmann::ordered_json> document = describe_image(image, name);
      if (!document) {
        const std::string reason = qemu_reason(document.error(), image.path(), "read");
        return image_failure(output, fmt::format("Could not open '{}': {}", image.path(), reason), &document.error());
      }
      list.push_back(std::move(*document));
    } else {
      Result<std::string> lines = image_text(image, name);
      if (!lines) {
        const std::string reason = qemu_reason(lines.error(), image.path(), "read");
        return image_failure(output, fmt::format("Could not open '{}': {}", image.path(), reason), &lines.error());
      }
      text += (text.empty() ? "" : "\n") + *lines;
    }
  }
  if (request.json) {
    text = qemu_json(request.chain ? list : list[0]);
  } else if (output.program() == "varve") {
    text = visible_lines(text);
  }
  output.print(text);
  return {0};
}

}  // namespace

ImageExit image_info(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "hf:U",
                                                      {{"help", false, 'h'},
                                                       {"format", true, 'f'},
                                                       {"output", true, kOptionOutput},
                                                       {"backing-chain", false, kOptionBackingChain},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  InfoRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  std::string output_format = call.json ? "json" : "human";
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case kOptionOutput:
        output_format = value;
        break;
      default:
        request.chain = true;
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  if (output_format != "human" && output_format != "json") {
    return image_failure(call.output, "--output must be used with human or json as argument.");
  }
  request.json = output_format == "json";
  return print_info(call.output, request);
}

}  // namespace varve::cli
