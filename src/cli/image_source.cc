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
#include "cli/dirty_image.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/null_device.h"
#include "cli/qemu_json.h"
#include "cli/secret_text.h"
#include "crypto/wrapped_secret.h"

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

constexpr std::array<std::string_view, 7> kSecretProperties = {"qom-type", "id",    "data", "file",
                                                               "format",   "keyid", "iv"};

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

Result<KeyValues> parse_json_name(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(double_quoted(text), nullptr, false);
  if (json.is_discarded()) return invalid("Could not parse the JSON options");
  if (!json.is_object()) return invalid("Invalid JSON object given");
  KeyValues result;
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

constexpr std::string_view kBelow = "backing.";

// "backing.…" without that word; `options` keep the others.
KeyValues take_below(KeyValues& options) {
  KeyValues below;
  KeyValues own;
  for (auto& [key, value] : options) {
    if (key.starts_with(kBelow))
      below.emplace_back(key.substr(kBelow.size()), value);
    else
      own.emplace_back(key, value);
  }
  options = std::move(own);
  return below;
}

Error unknown_to_protocol(const std::string& protocol, const std::string& option) {
  return invalid(fmt::format("Block protocol '{}' doesn't support the option '{}'", protocol, option));
}

Error unknown_to_format(const std::string& format, const std::string& option) {
  return invalid(fmt::format("Block format '{}' does not support the option '{}'", format, option));
}

// driver=null-co,size=…: what is read from it is zeroes whether it is asked for or not.
Result<void> apply_null_options(const KeyValues& options, const std::string& driver, ImageSource& source) {
  constexpr uint64_t kDefaultSize = uint64_t{1} << 30;
  source.format = image::Format::kRaw;
  source.null_size = kDefaultSize;
  for (const auto& [key, value] : options) {
    if (key == "size") {
      const Result<uint64_t> size = parse_size(value);
      if (!size) return invalid("Parameter 'size' expects a non-negative number below 2^64");
      source.null_size = *size;
    } else if (key == "read-zeroes" && value != "on" && value != "off") {
      return invalid("Parameter 'read-zeroes' expects 'on' or 'off'");
    } else if (key != "driver" && key != "read-zeroes" && key != "latency-ns" &&
               std::ranges::find(kIgnored, key) == kIgnored.end()) {
      return unknown_to_protocol(driver, key);
    }
  }
  return {};
}

Result<void> apply_options(KeyValues options, ImageSource& source) {
  if (const auto driver = std::ranges::find(options, "driver", &KeyValues::value_type::first);
      driver != options.end() && (driver->second == "null-co" || driver->second == "null-aio") && !source.name.empty())
    return apply_null_options(options, driver->second, source);
  const KeyValues below = take_below(options);
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
  const bool may_be_qcow2 = source.format.value_or(image::Format::kQcow2) == image::Format::kQcow2;
  const bool may_be_luks = source.format.value_or(image::Format::kLuks) == image::Format::kLuks;
  for (const auto& [key, value] : options) {
    const bool of_file = key.starts_with("file.");
    const std::string name = of_file ? key.substr(5) : key;
    if (key == "driver") continue;
    if (name == "filename" && of_file != is_file) {
      source.path = value;
    } else if (name == "driver" && of_file) {
      protocol = value;
    } else if (key == "data-file.filename" && may_be_qcow2) {
      source.data_file = value;
    } else if (key == "data-file.driver" && (value == "file" || value == "host_device")) {
    } else if ((key == "encrypt.key-secret" && may_be_qcow2) || (key == "key-secret" && may_be_luks)) {
      source.key_secret = value;
    } else if (key == "encrypt.format" && may_be_qcow2) {
      source.encryption_format = value;
    } else if (std::ranges::find(kIgnored, name) == kIgnored.end()) {
      return is_file || of_file ? unknown_to_protocol(is_file ? "file" : protocol, name)
                                : unknown_to_format(driver.value_or("raw"), name);
    }
  }
  if (protocol != "file" && protocol != "host_device") return invalid(fmt::format("Unknown driver '{}'", protocol));
  if (!below.empty()) {
    if (!may_be_qcow2) return unknown_to_format(name_of(*source.format), "backing." + below.front().first);
    ImageSource next;
    TRY(apply_options(below, next));
    std::vector<ImageSource> deeper = std::move(next.below);
    next.below.clear();
    source.below.push_back(std::move(next));
    for (ImageSource& s : deeper) source.below.push_back(std::move(s));
  }
  if (source.path.empty() && !source.name.empty()) {
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
  const bool is_json = text.starts_with("{");
  for (auto& [key, value] : TRY(is_json ? parse_json_name(text) : parse_key_values(text, "qom-type")))
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

std::string shown_name(const ImageSource& source, image::Format format) {
  if (!source.key_secret) return source.path;
  const std::string file = fmt::format(R"("driver": "{}", "file": {{"driver": "file", "filename": {}}})",
                                       name_of(format), qemu_json_string(source.path));
  const std::string secret = qemu_json_string(*source.key_secret);
  if (format == image::Format::kLuks) return fmt::format(R"(json:{{{}, "key-secret": {}}})", file, secret);
  return fmt::format(R"(json:{{"encrypt.key-secret": {}, {}}})", secret, file);
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
    image::LayerOptions layer{.path = std::nullopt, .format = s.format, .encryption = TRY(encryption_of(s))};
    if (!s.path.empty()) layer.path = s.path;
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
  const bool writes = options.use == image::Use::kWrite || options.use == image::Use::kWriteMetadata;
  if (arguments.share && writes)
    return invalid(fmt::format("Could not open '{}': force-share=on can only be used with read-only images", word));
  options.format = source.format;
  options.data_file = source.data_file;
  options.share_with_writers = arguments.share;
  options.rehearse = arguments.dry_run.wanted;
  if (Result<void> applied = apply_encryption(source, arguments.objects, options); !applied)
    return invalid(fmt::format("Could not open '{}': {}", word, applied.error().message));
  image::OpenFailure failure;
  std::optional<NullDevice> null;
  if (source.null_size) null.emplace(TRY(NullDevice::make(*source.null_size)));
  const std::string path = null ? null->path() : source.path;
  Result<image::OpenImage> opened = image::open_image(path, options, &failure);
  if (!opened && failure.layer == 0 && writes && failure.cause->kind == ErrorKind::kCorrupt &&
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
