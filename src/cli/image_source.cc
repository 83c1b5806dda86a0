#include "cli/image_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>

#include "base/units.h"
#include "cli/debug_options.h"
#include "cli/dirty_image.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/null_device.h"
#include "cli/qemu_json.h"
#include "cli/secret_text.h"
#include "crypto/wrapped_secret.h"

namespace varve::cli {

namespace {

constexpr std::array<std::string_view, 7> kSecretProperties = {"qom-type", "id",    "data", "file",
                                                               "format",   "keyid", "iv"};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

void flatten(const nlohmann::json& json, const std::string& prefix, SourceOptions& result) {
  for (const auto& [key, value] : json.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_structured()) {
      flatten(value, name, result);
    } else if (value.is_string()) {
      const auto text = value.get<std::string>();
      result.push_back({name, text, qemu_json_string(text)});
    } else {
      result.push_back({name, value.is_boolean() ? (value.get<bool>() ? "on" : "off") : value.dump(), value.dump()});
    }
  }
}

// QEMU also takes strings in single quotes.
std::string double_quoted(const std::string& text) {
  std::string result;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0 && c == '\\' && i + 1 < text.size()) {
      if (text[i + 1] != '\'') result += c;
      result += text[++i];
    } else if (c == '"' && quote == '\'') {
      result += "\\\"";
    } else if (c == quote || (quote == 0 && (c == '"' || c == '\''))) {
      quote = quote == 0 ? c : '\0';
      result += '"';
    } else {
      result += c;
    }
  }
  return result;
}

Result<SourceOptions> parse_json_name(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(double_quoted(text), nullptr, false);
  if (json.is_discarded()) return invalid("Could not parse the JSON options");
  if (!json.is_object()) return invalid("Invalid JSON object given");
  SourceOptions result;
  flatten(json, "", result);
  return result;
}

bool is_identifier(const std::string& id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && is_letter(id.front()) && std::ranges::all_of(id, [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

Result<crypto::SecretBytes> read_secret(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return invalid(
        fmt::format("Unable to read {}: Failed to open file \u201c{}\u201d: {}", path, path, std::strerror(errno)));
  }
  std::string text(std::istreambuf_iterator<char>(file), {});
  crypto::SecretBytes secret(text);
  crypto::cleanse(std::as_writable_bytes(std::span(text.data(), text.size())));
  return secret;
}

Error unknown_to_protocol(const std::string& protocol, const std::string& option) {
  return invalid(fmt::format("Block protocol '{}' doesn't support the option '{}'", protocol, option));
}

Error unknown_to_format(const std::string& format, const std::string& option) {
  return invalid(fmt::format("Block format '{}' does not support the option '{}'", format, option));
}

// driver=null-co,size=…: what is read from it is zeroes whether it is asked for or not.
Result<NodeName> apply_null_options(const SourceOptions& options, const std::string& driver, ImageSource& source) {
  constexpr uint64_t kDefaultSize = uint64_t{1} << 30;
  source.null_size = kDefaultSize;
  for (const auto& [key, value, json] : options) {
    if (key == "size") {
      const Result<uint64_t> size = parse_size(value);
      if (!size) return invalid("Parameter 'size' expects a non-negative number below 2^64");
      source.null_size = *size;
    } else if (key == "read-zeroes" && value != "on" && value != "off") {
      return invalid("Parameter 'read-zeroes' expects 'on' or 'off'");
    } else if (key != "driver" && key != "read-zeroes" && key != "latency-ns" && !is_tuning_option(key)) {
      return unknown_to_protocol(driver, key);
    }
  }
  return null_node(driver, options);
}

Result<SourceOptions> named_options(const std::string& name);

// What blkdebug lies upon: options of its own (image.…), or a name of any kind.
Result<SourceOptions> take_image_options(SourceOptions& options) {
  SourceOptions image = take_prefixed(options, "image.");
  if (const auto reference = value_of(options, "image"))
    return invalid(fmt::format("Cannot find device='{0}' nor node-name='{0}'", *reference));
  const auto name = value_of(take_prefixed(options, "x-image"), "");
  if (name && image.empty()) return named_options(*name);
  if (image.empty()) return invalid("A block device must be specified for \"image\"");
  return image;
}

// Where the bytes of an image are: a file, or blkdebug over one.
Result<NodeName> apply_protocol(SourceOptions options, ImageSource& source) {
  const std::string driver = value_of(options, "driver").value_or("file");
  if (driver == "blkdebug") {
    const SourceOptions image = TRY(take_image_options(options));
    DebugOptions filter = TRY(parse_debug_options(options));
    const NodeName below = TRY(apply_protocol(image, source));
    if (source.path.empty() && !source.null_size) return invalid("The 'file' block driver requires a file name");
    source.filters.on_file.push_back(std::move(filter));
    return debug_node(below, options);
  }
  if (driver == "null-co" || driver == "null-aio") return apply_null_options(options, driver, source);
  if (driver == "raw") {  // what it shows is what the file has
    const NodeName file = TRY(apply_protocol(take_prefixed(options, "file."), source));
    return format_node(driver, file, {});
  }
  if (driver != "file" && driver != "host_device") return invalid(fmt::format("Unknown driver '{}'", driver));
  source.bypass_cache |= value_of(options, "cache.direct") == "on";
  for (const auto& [key, value, json] : options) {
    if (key == "filename")
      source.path = value;
    else if (key != "driver" && !is_tuning_option(key))
      return unknown_to_protocol(driver, key);
  }
  return file_node(source.path.starts_with("file:") ? source.path.substr(5) : source.path);
}

Result<void> apply_options(SourceOptions options, ImageSource& source);

// blkdebug over all of an image, or over a file that has no format then.
Result<void> apply_disk_filter(SourceOptions options, ImageSource& source) {
  SourceOptions image = TRY(take_image_options(options));
  DebugOptions filter = TRY(parse_debug_options(options));
  const std::optional<std::string> driver = value_of(image, "driver");
  if (driver == "blkdebug" || (driver && image::format_of_name(*driver))) {
    TRY(apply_options(std::move(image), source));
    source.disk_node = debug_node(node_of(source, *source.format), options);
  } else {
    const NodeName file = TRY(apply_protocol(std::move(image), source));
    if (source.path.empty() && !source.null_size) return invalid("The 'file' block driver requires a file name");
    source.format = image::Format::kRaw;
    source.disk_node = debug_node(file, options);
  }
  source.filters.on_disk.push_back(std::move(filter));
  return {};
}

Result<void> apply_below(SourceOptions options, ImageSource& source) {
  if (options.empty()) return {};
  ImageSource next;
  TRY(apply_options(std::move(options), next));
  if (next.null_size) return invalid("Unknown driver 'null-co'");  // there is only one such disk, at the top
  std::vector<ImageSource> deeper = std::move(next.below);
  next.below.clear();
  source.below.push_back(std::move(next));
  for (ImageSource& s : deeper) source.below.push_back(std::move(s));
  return {};
}

Result<void> apply_options(SourceOptions options, ImageSource& source) {
  const std::optional<std::string> driver = value_of(options, "driver");
  if (driver == "blkdebug") return apply_disk_filter(std::move(options), source);
  const bool is_null = driver == "null-co" || driver == "null-aio";
  const bool is_file = driver == "file" || (is_null && !source.name.empty());
  source.format = is_file || !driver ? source.format : image::format_of_name(*driver);
  if (is_file) source.format = image::Format::kRaw;
  if (driver && !source.format) return invalid(fmt::format("Unknown driver '{}'", *driver));
  if (is_file) {
    source.file_node = TRY(apply_protocol(std::move(options), source));
  } else {
    SourceOptions below = take_prefixed(options, "backing.");
    SourceOptions file = take_prefixed(options, "file.");
    const bool may_be_qcow2 = source.format.value_or(image::Format::kQcow2) == image::Format::kQcow2;
    const bool may_be_luks = source.format.value_or(image::Format::kLuks) == image::Format::kLuks;
    source.bypass_cache |= value_of(options, "cache.direct") == "on";
    for (const auto& [key, value, json] : options) {
      if (key == "data-file.filename" && may_be_qcow2) {
        source.data_file = value;
      } else if (key == "data-file.driver" && (value == "file" || value == "host_device")) {
      } else if ((key == "encrypt.key-secret" && may_be_qcow2) || (key == "key-secret" && may_be_luks)) {
        source.key_secret = value;
      } else if (key == "encrypt.format" && may_be_qcow2) {
        source.encryption_format = value;
      } else if (key != "driver" && !is_tuning_option(key)) {
        return unknown_to_format(driver.value_or("raw"), key);
      }
    }
    if (!file.empty()) source.file_node = TRY(apply_protocol(std::move(file), source));
    if (!may_be_qcow2 && !below.empty())
      return unknown_to_format(name_of(*source.format), "backing." + below.front().key);
    TRY(apply_below(std::move(below), source));
  }
  if (source.path.empty() && !source.null_size && !source.name.empty()) {
    if (is_file) return invalid("The 'file' block driver requires a file name");
    return invalid("A block device must be specified for \"file\"");
  }
  return {};
}

// The options that a name stands for: a json: name has its own, the others are a path or begin with a protocol.
Result<SourceOptions> named_options(const std::string& name) {
  if (name.starts_with("json:")) return parse_json_name(name.substr(5));
  constexpr std::string_view kDebug = "blkdebug:";
  if (!name.starts_with(kDebug)) return SourceOptions{{"filename", name, qemu_json_string(name)}};
  const size_t colon = name.find(':', kDebug.size());
  if (colon == std::string::npos) return invalid("blkdebug requires both config file and image path");
  const std::string config = name.substr(kDebug.size(), colon - kDebug.size());
  SourceOptions options = {{"driver", "blkdebug", "\"blkdebug\""}, {"x-image", name.substr(colon + 1), ""}};
  if (!config.empty()) options.push_back({"config", config, qemu_json_string(config)});
  return options;
}

}  // namespace

Result<SourceOptions> parse_key_values(const std::string& text, const std::string& implied) {
  SourceOptions result;
  std::string element;
  const auto take = [&]() -> Result<void> {
    const size_t equals = element.find('=');
    if (equals != std::string::npos) {
      if (equals == 0) return invalid(fmt::format("Invalid parameter '{}'", element));
      const std::string value = element.substr(equals + 1);
      result.push_back({element.substr(0, equals), value, qemu_json_string(value)});
    } else if (result.empty() && !implied.empty()) {
      result.push_back({implied, element, qemu_json_string(element)});
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
  const bool is_json = text.starts_with("{");
  for (const auto& [key, value, json] : TRY(is_json ? parse_json_name(text) : parse_key_values(text, "qom-type")))
    members[key] = value;
  const std::string type = members["qom-type"];
  if (type.empty()) return invalid("Parameter 'qom-type' is missing");
  if (type != "secret") return invalid(fmt::format("Parameter 'qom-type' does not accept value '{}'", type));
  if (!members.contains("id")) return invalid("Parameter 'id' is missing");
  const std::string id = members["id"];
  const std::string format = members.contains("format") ? members["format"] : "raw";
  if (format != "raw" && format != "base64")
    return invalid(fmt::format("Parameter 'format' does not accept value '{}'", format));
  for (const auto& [key, value] : members) {
    if (std::ranges::find(kSecretProperties, key) == kSecretProperties.end())
      return invalid(fmt::format("Parameter '{}' is unexpected", key));
  }
  if (!is_identifier(id)) {
    return invalid(
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
  }
  if (secrets_.contains(id))
    return invalid(fmt::format("attempt to add duplicate property '{}' to object (type 'container')", id));
  const bool has_data = members.contains("data");
  const bool has_file = members.contains("file");
  if (has_data && has_file) return invalid("'file' and 'data' are mutually exclusive");
  if (!has_data && !has_file) return invalid("Either 'file' or 'data' must be provided");
  crypto::SecretBytes secret = has_file ? TRY(read_secret(members["file"])) : crypto::SecretBytes(members["data"]);
  if (members.contains("keyid")) {
    std::optional<std::string> vector;
    if (members.contains("iv")) vector = members["iv"];
    secret = TRY(unwrap(members["keyid"], vector, std::move(secret), format == "base64"));
  } else if (format == "base64") {
    secret = TRY(decode_base64(secret.text()));
  }
  secrets_[id] = std::make_shared<const crypto::SecretBytes>(std::move(secret));
  return {};
}

Result<std::shared_ptr<const crypto::SecretBytes>> ImageObjects::find(const std::string& id) const {
  const auto found = secrets_.find(id);
  if (found != secrets_.end()) return found->second;
  return make_error(ErrorKind::kNotFound, fmt::format("No secret with id '{}'", id));
}

Result<crypto::SecretBytes> ImageObjects::unwrap(const std::string& key_id, const std::optional<std::string>& vector,
                                                 crypto::SecretBytes wrapped, bool is_base64) const {
  const auto key = TRY(find(key_id));
  if (key->size() != crypto::kWrappingKeyBytes) return invalid("Key should be 32 bytes in length");
  if (!vector) return invalid("IV is required to decrypt secret");
  const crypto::SecretBytes iv = TRY(decode_base64(*vector));
  if (iv.size() != crypto::kWrappingVectorBytes)
    return invalid(fmt::format("IV should be 16 bytes in length not {}", iv.size()));
  if (is_base64) wrapped = TRY(decode_base64(wrapped.text()));
  return crypto::unwrap_secret(key->bytes().first<crypto::kWrappingKeyBytes>(),
                               iv.bytes().first<crypto::kWrappingVectorBytes>(), std::as_const(wrapped).bytes());
}

Result<std::shared_ptr<const crypto::SecretBytes>> ImageObjects::passphrase(const std::string& id) const {
  auto secret = TRY(find(id));
  if (!is_utf8(secret->text())) return invalid(fmt::format("Data from secret {} is not valid UTF-8", id));
  return secret;
}

NodeName node_of(const ImageSource& source, image::Format format) {
  if (source.disk_node) return *source.disk_node;
  SourceOptions options;
  if (source.key_secret) {
    const char* key = format == image::Format::kLuks ? "key-secret" : "encrypt.key-secret";
    options.push_back({key, *source.key_secret, qemu_json_string(*source.key_secret)});
  }
  return format_node(name_of(format), source.file_node ? *source.file_node : file_node(source.path), options);
}

Result<void> apply_encryption(const ImageSource& source, const ImageObjects& objects, image::OpenOptions& options) {
  const auto encryption_of = [&](const ImageSource& s) -> Result<image::Encryption> {
    image::Encryption encryption{.format = s.encryption_format, .passphrase = nullptr};
    if (s.key_secret && options.use != image::Use::kInspect)
      encryption.passphrase = TRY(objects.passphrase(*s.key_secret));
    return encryption;
  };
  options.encryption = TRY(encryption_of(source));
  for (const ImageSource& s : source.below) {
    image::LayerOptions layer{
        .path = std::nullopt, .format = s.format, .encryption = TRY(encryption_of(s)), .filters = {}};
    if (!s.path.empty()) layer.path = s.path;
    layer.filters = s.filters;
    options.below.push_back(std::move(layer));
  }
  return {};
}

std::optional<ImageExit> take_source_arguments(const ImageCall& call, ParsedImageArguments& parsed,
                                               SourceArguments& source) {
  source.diagnostics = [&output = call.output](const std::string& line) { output.diagnostics(line + "\n"); };
  source.as_qemu_img = call.output.program() != "varve";
  source.dry_run = parsed.dry_run;
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
  ImageSource source;
  source.name = source.path = word;
  if (arguments.image_opts && arguments.format) return invalid("--image-opts and --format are mutually exclusive");
  const auto cannot = [&](const Error& error) {
    return invalid(fmt::format("Could not open '{}': {}", word, error.message));
  };
  if (arguments.format) source.format = image::format_of_name(*arguments.format);
  if (arguments.format && !source.format)
    return invalid(fmt::format("Could not open '{}': Unknown driver '{}'", word, *arguments.format));
  const bool is_json = word.starts_with("json:");
  if (!arguments.image_opts && !is_json) {
    if (!word.starts_with("blkdebug:")) return source;
    source.path.clear();
    Result<SourceOptions> options = named_options(word);
    if (!options) return cannot(options.error());
    Result<NodeName> node = apply_protocol(*options, source);
    if (!node) return cannot(node.error());
    source.file_node = *node;
    return source;
  }
  Result<SourceOptions> options = is_json ? parse_json_name(word.substr(5)) : parse_key_values(word, "");
  if (!options) return arguments.image_opts && !is_json ? options.error() : cannot(options.error());
  source.path.clear();
  if (Result<void> applied = apply_options(*options, source); !applied) return cannot(applied.error());
  return source;
}

Result<image::OpenImage> open_source(const std::string& word, const SourceArguments& arguments,
                                     image::OpenOptions options) {
  const ImageSource source = TRY(find_source(word, arguments));
  const bool writes = options.use == image::Use::kWrite || options.use == image::Use::kWriteMetadata;
  if (arguments.share && writes)
    return invalid(fmt::format("Could not open '{}': force-share=on can only be used with read-only images", word));
  options.format = source.format;
  options.data_file = source.data_file;
  options.share_with_writers = arguments.share;
  options.rehearse = arguments.dry_run.wanted;
  options.filters = source.filters;
  options.bypass_cache = arguments.bypass_cache || source.bypass_cache;
  if (Result<void> applied = apply_encryption(source, arguments.objects, options); !applied)
    return invalid(fmt::format("Could not open '{}': {}", word, applied.error().message));
  image::OpenFailure failure;
  std::optional<NullDevice> null;
  if (source.null_size) null.emplace(TRY(NullDevice::make(*source.null_size)));
  const std::string path = null ? null->path() : source.path;
  Result<image::OpenImage> opened = image::open_image(path, options, &failure);
  if (!opened && failure.layer == 0 && writes && source.filters.empty() && failure.cause->kind == ErrorKind::kCorrupt &&
      source.format.value_or(image::Format::kQcow2) == image::Format::kQcow2 && is_dirty_image(source.path)) {
    if (arguments.dry_run.wanted)
      return make_error(
                 ErrorKind::kRefused,
                 fmt::format("'{}' was not closed cleanly, and would be repaired first: what comes then can't be "
                             "foretold",
                             word))
          .with_note(fmt::format("`varve --dry-run image check -r all {}` shows the repair", source.path));
    const auto line = [&](const std::string& text) {
      if (arguments.diagnostics) arguments.diagnostics(text);
    };
    if (Result<void> repaired = repair_dirty_image(source.path, line); !repaired) {
      return std::move(repaired).error().context(fmt::format("Could not open '{}'", word));
    }
    opened = image::open_image(source.path, options, &failure);
  }
  if (opened && opened->was_probed() && opened->format() == image::Format::kRaw && writes && arguments.diagnostics) {
    arguments.diagnostics(fmt::format(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations on block "
        "0 will be restricted.\n"
        "         Specify the 'raw' format explicitly to remove the restrictions.",
        source.path));
  }
  if (!opened) {
    const Words words = arguments.as_qemu_img ? Words::kQemus : Words::kOurs;
    opened.error().message = fmt::format("Could not open '{}': {}", word, qemu_open_reason(failure, words));
  }
  return opened;
}

}  // namespace varve::cli
