// `image map`: which parts of a disk are data, zeroes or nothing, in which layer, and where in its file.
#include <fmt/format.h>

#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_source.h"
#include "image/chain_map.h"

namespace varve::cli {

namespace {

// Guest bytes looked at in one go: what is held of the map at a time.
constexpr uint64_t kWindow = uint64_t{1} << 32;

struct MapRequest {
  std::string path;
  SourceArguments source;
  bool json = false;
  uint64_t start = 0;
  std::optional<uint64_t> max_length;
};

// As printf's %#x: zero has no 0x.
std::string hexadecimal(uint64_t number) {
  return number == 0 ? "0" : fmt::format("{:#x}", number);
}

// Prints the map as it comes, neighbours that nothing tells apart as one.
class MapPrinter {
 public:
  MapPrinter(Output& output, const image::OpenImage& image, std::string top_name, bool json)
      : output_(output), image_(image), top_name_(std::move(top_name)), json_(json) {}

  void begin() { text_ = json_ ? "[" : fmt::format("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File"); }

  bool add(const image::ChainExtent& extent) {
    if (pending_ && joins(*pending_, extent)) {
      pending_->length += extent.length;
      return true;
    }
    if (pending_ && !print(*pending_, false)) return false;
    pending_ = extent;
    return true;
  }

  bool finish(uint64_t start) {
    if (!pending_) {
      pending_.emplace();
      pending_->offset = start;
    }
    if (!print(*pending_, true)) return false;
    if (json_) text_ += "]\n";
    output_.print(text_);
    return true;
  }

  void give_up() { output_.print(text_); }

 private:
  static bool has_offset(const image::ChainExtent& e) { return e.host_offset.has_value() && !e.compressed; }

  static bool joins(const image::ChainExtent& a, const image::ChainExtent& b) {
    if (a.zero != b.zero || a.data != b.data || a.present != b.present || a.depth != b.depth) return false;
    if (has_offset(a) != has_offset(b)) return false;
    return !has_offset(a) || *a.host_offset + a.length == *b.host_offset;
  }

  const std::string& file_of(uint32_t depth) const {
    const image::Layer& layer = image_.layers()[depth];
    return layer.data_path ? *layer.data_path : depth == 0 ? top_name_ : layer.path;
  }

  bool print(const image::ChainExtent& e, bool last) {
    const auto out = std::back_inserter(text_);
    if (json_) {
      fmt::format_to(out,
                     "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}",
                     e.offset, e.length, e.depth, e.present, e.zero, e.data);
      if (has_offset(e)) fmt::format_to(out, ", \"offset\": {}", *e.host_offset);
      text_ += last ? "}" : "},\n";
    } else if (e.data && !has_offset(e)) {
      return false;
    } else if (e.data && !e.zero) {
      fmt::format_to(out, "{:<16}{:<16}{:<16}{}\n", hexadecimal(e.offset), hexadecimal(e.length),
                     hexadecimal(*e.host_offset), file_of(e.depth));
    }
    if (text_.size() > 1 << 16) {
      output_.print(text_);
      text_.clear();
    }
    return true;
  }

  Output& output_;
  const image::OpenImage& image_;
  std::string top_name_;  // of the file of the uppermost layer
  bool json_;
  std::string text_;
  std::optional<image::ChainExtent> pending_;
};

ImageExit map(Output& output, const MapRequest& request) {
  const Result<image::OpenImage> image = open_source(request.path, request.source, {.use = image::Use::kRead});
  if (!image) return image_failure(output, image.error());
  const auto unreadable = [&](const Error& error) {
    const std::string reason = output.program() == "varve" ? error.message : errno_text(error);
    return image_failure(output, fmt::format("Could not read file metadata: {}", reason), &error);
  };
  const auto source = find_source(request.path, request.source);
  // Of a raw image QEMU names the file below blkdebug.
  const bool filtered = source && !source->filters.on_file.empty() && image->format() != image::Format::kRaw;
  MapPrinter printer(output, *image, filtered ? source->file_node->text() : image->path(), request.json);
  printer.begin();
  Result<image::ChainMap> map = image::ChainMap::open(*image, image::TopFilters::kSkipped);
  if (!map) return unreadable(map.error());
  uint64_t end = map->size();
  if (request.max_length) end = std::min(end, request.start + std::min(*request.max_length, end));
  for (uint64_t at = request.start; at < end; at += kWindow) {
    Result<std::vector<image::ChainExtent>> extents = map->extents(at, std::min(kWindow, end - at));
    if (!extents) {
      printer.give_up();
      return unreadable(extents.error());
    }
    for (const image::ChainExtent& extent : *extents) {
      if (printer.add(extent)) continue;
      printer.give_up();
      return image_failure(output, "File contains external, encrypted or compressed clusters.");
    }
  }
  if (!printer.finish(request.start)) {
    printer.give_up();
    return image_failure(output, "File contains external, encrypted or compressed clusters.");
  }
  return {0};
}

}  // namespace

ImageExit image_map(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "f:s:l:hU",
                                                      {{"help", false, 'h'},
                                                       {"format", true, 'f'},
                                                       {"output", true, kOptionOutput},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'},
                                                       {"start-offset", true, 's'},
                                                       {"max-length", true, 'l'}});
  if (parsed.failed) return *parsed.failed;
  MapRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  std::string output_format = call.json ? "json" : "human";
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case kOptionOutput:
        output_format = value;
        break;
      default: {
        const auto number = size_argument(call.output, id == 's' ? "start offset" : "max length", value);
        if (!number) return {1};
        if (id == 's')
          request.start = *number;
        else
          request.max_length = number;
      }
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  if (output_format != "human" && output_format != "json")
    return image_failure(call.output, "--output must be used with human or json as argument.");
  request.json = output_format == "json";
  return map(call.output, request);
}

}  // namespace varve::cli
