#include "cli/image_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/image_command.h"
#include "cli/image_errors.h"

namespace varve::cli {

namespace {

using KeyValues = std::vector<std::pair<std::string, std::string>>;

// What tunes QEMU's own caches and threads: of no effect here, and no reason to refuse.
constexpr std::array kIgnored = {"aio",
                                 "auto-read-only",
                                 "cache.direct",
                                 "cache.no-flush",
                                 "cache.writeback",
                                 "cache-size",
                                 "cache-clean-interval",
                                 "detect-zeroes",
                                 "discard",
                                 "l2-cache-entry-size",
                                 "l2-cache-size",
                                 "lazy-refcounts",
                                 "locking",
                                 "node-name",
                                 "overlap-check",
                                 "read-only",
                                 "refcount-cache-size",
                                 "overlap-check.template",
                                 "pass-discard-other",
                                 "pass-discard-request",
                                 "pass-discard-snapshot",
                                 "force-share"};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

void flatten(const nlohmann::json& json, const std::string& prefix, KeyValues& result) {
  for (const auto& [key, value] : json.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_structured()) {
      flatten(value, name, result);
    } else {
      result.emplace_back(name, value.is_string()    ? value.get<std::string>()
                                : value.is_boolean() ? (value.get<bool>() ? "on" : "off")
                                                     : value.dump());
    }
  }
}

Result<KeyValues> parse_json_name(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return invalid("Could not parse the JSON options");
  if (!json.is_object()) return invalid("Invalid JSON object given");
  KeyValues result;
  flatten(json, "", result);
  return result;
}

Result<void> apply_options(const KeyValues& options, ImageSource& source) {
  std::optional<std::string> driver;
  std::string protocol = "file";
  for (const auto& [key, value] : options)
    if (key == "driver") driver = value;
  const bool is_file = driver == "file";
  if (driver && !is_file) {
    source.format = image::format_of_name(*driver);
    if (!source.format) return invalid(fmt::format("Unknown driver '{}'", *driver));
  }
  if (is_file) source.format = image::Format::kRaw;
  for (const auto& [key, value] : options) {
    const bool of_file = key.starts_with("file.");
    const std::string name = of_file ? key.substr(5) : key;
    if (key == "driver") continue;
    if (name == "filename" && of_file != is_file) {
      source.path = value;
    } else if (name == "driver" && of_file) {
      protocol = value;
    } else if (key == "encrypt.key-secret") {
      source.key_secret = value;
    } else if (key == "encrypt.format" && value == "luks") {
    } else if (std::ranges::find(kIgnored, name) == kIgnored.end()) {
      return invalid(fmt::format("Block {} '{}' does not support the option '{}'", of_file ? "protocol" : "format",
                                 of_file ? protocol : driver.value_or("raw"), name));
    }
  }
  if (protocol != "file" && protocol != "host_device") return invalid(fmt::format("Unknown driver '{}'", protocol));
  if (source.path.empty()) {
    if (is_file) return invalid("The 'file' block driver requires a file name");
    return invalid("A block device must be specified for \"file\"");
  }
  return {};
}

}  // namespace

Result<KeyValues> parse_key_values(const std::string& text, const std::string& implied) {
  KeyValues result;
  std::string element;
  const auto take = [&]() -> Result<void> {
    const size_t equals = element.find('=');
    if (equals != std::string::npos) {
      if (equals == 0) return invalid(fmt::format("Invalid parameter '{}'", element));
      result.emplace_back(element.substr(0, equals), element.substr(equals + 1));
    } else if (result.empty() && !implied.empty()) {
      result.emplace_back(implied, element);
    } else {
      return invalid(fmt::format("Expected '=' after parameter '{}'", element));
    }
    element.clear();
    return {};
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      element += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      element += ',';
      ++i;
    } else {
      TRY(take());
    }
  }
  if (!element.empty()) TRY(take());
  return result;
}

Result<void> ImageObjects::add(const std::string& text) {
  std::map<std::string, std::string> members;
  for (auto& [key, value] : TRY(parse_key_values(text, "qom-type"))) members[key] = value;
  const std::string type = members["qom-type"];
  if (type.empty()) return invalid("Parameter 'qom-type' is missing");
  if (type != "secret") return invalid(fmt::format("Parameter 'qom-type' does not accept value '{}'", type));
  if (!members.contains("id")) return invalid("Parameter 'id' is missing");
  const std::string id = members["id"];
  for (const auto& [key, value] : members) {
    if (key != "qom-type" && key != "id" && key != "data" && key != "file" && key != "format")
      return invalid(fmt::format("Parameter '{}' is unexpected", key));
  }
  if (secrets_.contains(id)) return invalid(fmt::format("attempt to add duplicate property '{}' to object", id));
  const bool has_data = members.contains("data");
  const bool has_file = members.contains("file");
  if (has_data && has_file) return invalid("'file' and 'data' are mutually exclusive");
  if (!has_data && !has_file) return invalid("Must provide 'file' or 'data'");
  if (members.contains("format") && members["format"] != "raw")
    return make_error(ErrorKind::kUnsupported, "secrets in another format than raw are not supported");
  std::string secret = members["data"];
  if (has_file) {
    std::ifstream file(members["file"], std::ios::binary);
    if (!file) return invalid(fmt::format("Unable to read {}: {}", members["file"], "Failed to open file"));
    secret.assign(std::istreambuf_iterator<char>(file), {});
  }
  secrets_[id] = std::move(secret);
  return {};
}

const std::string* ImageObjects::secret(const std::string& id) const {
  const auto found = secrets_.find(id);
  return found == secrets_.end() ? nullptr : &found->second;
}

std::optional<ImageExit> take_source_arguments(const ImageCall& call, ParsedImageArguments& parsed,
                                               SourceArguments& source) {
  source.as_qemu_img = call.output.program() != "varve";
  std::vector<ParsedImageOption> others;
  for (ParsedImageOption& option : parsed.options) {
    switch (option.id) {
      case 'h':
        return image_help(call.output);
      case 'f':
        source.format = option.value;
        break;
      case 'U':
        source.share = true;
        break;
      case kOptionImageOpts:
        source.image_opts = true;
        break;
      case kOptionObject:
        if (Result<void> added = source.objects.add(option.value); !added)
          return image_failure(call.output, added.error());
        break;
      default:
        others.push_back(std::move(option));
    }
  }
  parsed.options = std::move(others);
  return std::nullopt;
}

Result<ImageSource> find_source(const std::string& word, const SourceArguments& arguments) {
  ImageSource source{.name = word, .path = word, .format = std::nullopt, .key_secret = std::nullopt};
  if (arguments.image_opts && arguments.format) return invalid("--image-opts and --format are mutually exclusive");
  const auto cannot = [&](const Error& error) {
    return invalid(fmt::format("Could not open '{}': {}", word, error.message));
  };
  if (arguments.format && !(source.format = image::format_of_name(*arguments.format)))
    return invalid(fmt::format("Could not open '{}': Unknown driver '{}'", word, *arguments.format));
  const bool is_json = word.starts_with("json:");
  if (!arguments.image_opts && !is_json) return source;
  Result<KeyValues> options = is_json ? parse_json_name(word.substr(5)) : parse_key_values(word, "");
  if (!options) return arguments.image_opts && !is_json ? options.error() : cannot(options.error());
  source.path.clear();
  if (Result<void> applied = apply_options(*options, source); !applied) return cannot(applied.error());
  return source;
}

Result<image::OpenImage> open_source(const std::string& word, const SourceArguments& arguments,
                                     image::OpenOptions options) {
  const ImageSource source = TRY(find_source(word, arguments));
  if (arguments.share && options.use == image::Use::kWrite)
    return invalid(fmt::format("Could not open '{}': force-share=on can only be used with read-only images", word));
  options.format = source.format;
  options.share_with_writers = arguments.share;
  image::OpenFailure failure;
  Result<image::OpenImage> opened = image::open_image(source.path, options, &failure);
  if (!opened) {
    const Words words = arguments.as_qemu_img ? Words::kQemus : Words::kOurs;
    opened.error().message = fmt::format("Could not open '{}': {}", word, qemu_open_reason(failure, words));
  }
  return opened;
}

}  // namespace varve::cli
