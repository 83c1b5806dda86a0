#include "cli/image_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <span>

#include "base/checked.h"
#include "base/units.h"

namespace varve::cli {

namespace {

enum class Type : uint8_t { kText, kFlag, kNumber, kSize };

}  // namespace

struct ImageOptionDescription {
  const char* name;
  Type type;
  const char* initial;  // null: not printed unless given
  bool of_file;         // offered by the file system rather than by the format
  const char* help;     // null: known, and refused (refuse_unsupported)
};

namespace {

// In the order in which QEMU prints them.
constexpr ImageOptionDescription kQcow2Options[] = {
    {"encryption", Type::kFlag, nullptr, false, nullptr},
    {"encrypt.format", Type::kText, nullptr, false, nullptr},
    {"encrypt.key-secret", Type::kText, nullptr, false, nullptr},
    {"encrypt.cipher-alg", Type::kText, nullptr, false, nullptr},
    {"encrypt.cipher-mode", Type::kText, nullptr, false, nullptr},
    {"encrypt.ivgen-alg", Type::kText, nullptr, false, nullptr},
    {"encrypt.ivgen-hash-alg", Type::kText, nullptr, false, nullptr},
    {"encrypt.hash-alg", Type::kText, nullptr, false, nullptr},
    {"encrypt.iter-time", Type::kNumber, nullptr, false, nullptr},
    {"cluster_size", Type::kSize, "65536", false, "Bytes per cluster, a power of two from 512 to 2M"},
    {"extended_l2", Type::kFlag, "off", false, "Allocate by 1/32 of a cluster (clusters of 16k or more)"},
    {"preallocation", Type::kText, nullptr, false, "What to allocate at once: off, metadata"},
    {"compression_type", Type::kText, "zlib", false, "How compressed clusters are packed: zlib, zstd"},
    {"size", Type::kSize, nullptr, false, "Size of the disk"},
    {"compat", Type::kText, nullptr, false, "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    {"backing_file", Type::kText, nullptr, false, "The image that shows through"},
    {"backing_fmt", Type::kText, nullptr, false, "Its format"},
    {"data_file", Type::kText, nullptr, false, nullptr},
    {"data_file_raw", Type::kFlag, nullptr, false, nullptr},
    {"lazy_refcounts", Type::kFlag, "off", false, "Let refcounts on disk lag behind"},
    {"refcount_bits", Type::kNumber, "16", false, "Bits per reference count, a power of two up to 64"},
    {"nocow", Type::kFlag, nullptr, true, nullptr},
    {"extent_size_hint", Type::kSize, nullptr, true, nullptr},
};
constexpr ImageOptionDescription kRawOptions[] = {
    {"size", Type::kSize, nullptr, false, "Size of the disk"},
    {"nocow", Type::kFlag, nullptr, true, nullptr},
    {"preallocation", Type::kText, nullptr, true, "What to allocate at once: off"},
    {"extent_size_hint", Type::kSize, nullptr, true, nullptr},
};

std::span<const ImageOptionDescription> options_of(image::Format format) {
  if (format == image::Format::kRaw) return kRawOptions;
  return kQcow2Options;
}

const ImageOptionDescription* find(image::Format format, const std::string& name) {
  for (const ImageOptionDescription& option : options_of(format)) {
    if (name == option.name) return &option;
  }
  return nullptr;
}

// The elements of an option list; ",," in one is a comma.
std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> elements(1);
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] != ',') {
      elements.back() += list[i];
    } else if (i + 1 < list.size() && list[i + 1] == ',') {
      elements.back() += ',';
      ++i;
    } else {
      elements.emplace_back();
    }
  }
  return elements;
}

std::string escape_commas(const std::string& value) {
  std::string escaped;
  for (const char c : value) {
    escaped += c;
    if (c == ',') escaped += c;
  }
  return escaped;
}

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

Result<bool> parse_flag(const std::string& name, const std::string& value) {
  for (const char* yes : {"on", "yes", "true", "y"}) {
    if (value == yes) return true;
  }
  for (const char* no : {"off", "no", "false", "n"}) {
    if (value == no) return false;
  }
  return invalid(fmt::format("Parameter '{}' expects 'on' or 'off'", name));
}

Result<uint64_t> parse_number(const std::string& name, const std::string& value) {
  char* end = nullptr;
  errno = 0;
  const uint64_t number = std::strtoull(value.c_str(), &end, 0);
  if (value.empty() || *end != '\0') return invalid(fmt::format("Parameter '{}' expects a number", name));
  if (errno == ERANGE) return invalid(fmt::format("Value '{}' is too large for parameter '{}'", value, name));
  return number;
}

Result<uint64_t> parse_size_option(const std::string& name, const std::string& value) {
  Result<uint64_t> size = parse_size(value);
  if (size) return size;
  if (size.error().sys_errno == ERANGE) {
    return invalid(fmt::format("Value '{}' is out of range for parameter '{}'", value, name));
  }
  return invalid(
      fmt::format("Parameter '{}' expects a non-negative number below 2^64\n"
                  "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                  "and exabytes, respectively.",
                  name));
}

}  // namespace

bool is_option_list(const std::string& list) {
  // A comma at an end is part of a value where it is doubled.
  size_t leading = 0;
  while (leading < list.size() && list[leading] == ',') ++leading;
  size_t trailing = 0;
  while (trailing < list.size() && list[list.size() - 1 - trailing] == ',') ++trailing;
  return !list.empty() && leading == 0 && trailing % 2 == 0;
}

bool asks_for_help(const std::string& list) {
  return std::ranges::any_of(split(list), [](const std::string& e) { return e == "help" || e == "?"; });
}

std::string option_help(image::Format format, bool with_file) {
  std::vector<ImageOptionDescription> listed;
  for (const ImageOptionDescription& option : options_of(format)) {
    if (option.help != nullptr && (with_file || !option.of_file)) listed.push_back(option);
  }
  std::ranges::sort(listed, [](const auto& a, const auto& b) { return std::string_view(a.name) < b.name; });
  std::string text = with_file ? "Supported options:\n" : fmt::format("Supported {} options:\n", name_of(format));
  for (const ImageOptionDescription& option : listed) {
    const char* type = option.type == Type::kText     ? "str"
                       : option.type == Type::kFlag   ? "bool (on/off)"
                       : option.type == Type::kNumber ? "num"
                                                      : "size";
    text += fmt::format("  {:<22} - {}\n", fmt::format("{}=<{}>", option.name, type), option.help);
  }
  if (!with_file) {
    text += "\nThe file system may offer further options.\nName the target's file to see those, too.\n";
  }
  return text;
}

bool ImageOptions::knows(const std::string& name) const {
  return find(format_, name) != nullptr;
}

Result<void> ImageOptions::set(const std::string& name, const std::string& text) {
  const ImageOptionDescription* option = find(format_, name);
  if (option == nullptr) return invalid(fmt::format("Invalid parameter '{}'", name));
  Value value;
  value.text = text;
  switch (option->type) {
    case Type::kText:
      break;
    case Type::kFlag:
      value.flag = TRY(parse_flag(name, text));
      break;
    case Type::kNumber:
      value.number = TRY(parse_number(name, text));
      break;
    case Type::kSize:
      value.number = TRY(parse_size_option(name, text));
      break;
  }
  values_[name] = std::move(value);
  return {};
}

Result<void> ImageOptions::parse(const std::string& list) {
  for (const std::string& element : split(list)) {
    const size_t equals = element.find('=');
    if (equals != std::string::npos) {
      TRY(set(element.substr(0, equals), element.substr(equals + 1)));
    } else if (element.starts_with("no")) {
      TRY(set(element.substr(2), "off"));
    } else {
      TRY(set(element, "on"));
    }
  }
  return {};
}

std::optional<std::string> ImageOptions::text(const std::string& name) const {
  const auto found = values_.find(name);
  if (found != values_.end()) return found->second.text;
  return std::nullopt;
}

std::optional<uint64_t> ImageOptions::number(const std::string& name) const {
  const auto found = values_.find(name);
  if (found != values_.end()) return found->second.number;
  const ImageOptionDescription* option = find(format_, name);
  if (option != nullptr && option->initial != nullptr) return std::strtoull(option->initial, nullptr, 10);
  return std::nullopt;
}

bool ImageOptions::flag(const std::string& name) const {
  const auto found = values_.find(name);
  return found != values_.end() && found->second.flag;
}

std::string ImageOptions::formatted() const {
  std::string text;
  for (const ImageOptionDescription& option : options_of(format_)) {
    const auto found = values_.find(option.name);
    std::string value;
    if (found == values_.end()) {
      if (option.initial == nullptr) continue;
      value = option.initial;
    } else if (option.type == Type::kNumber || option.type == Type::kSize) {
      value = fmt::format("{}", static_cast<int64_t>(found->second.number));  // as QEMU does, signed
    } else {
      value = escape_commas(found->second.text);
    }
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", option.name, value);
  }
  return text;
}

Result<void> refuse_unsupported(const ImageOptions& options) {
  for (const ImageOptionDescription& option : options_of(options.format())) {
    const bool is_encryption = std::string_view(option.name).starts_with("encrypt");  // image_encryption.h
    if (option.help == nullptr && !is_encryption && options.text(option.name)) {
      return make_error(ErrorKind::kUnsupported,
                        fmt::format("The option '{}' is not supported by this version of Varve", option.name));
    }
  }
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation == "falloc" || preallocation == "full") {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("preallocation={} is not supported by this version of Varve", preallocation));
  }
  return {};
}

Result<void> check_raw_options(const ImageOptions& options) {
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation == "off") return {};
  if (preallocation == "metadata") return invalid("Unsupported preallocation mode: metadata");
  return invalid(fmt::format("invalid parameter value: {}", preallocation));
}

Result<qcow2::CreateOptions> qcow2_create_options(const ImageOptions& options) {
  constexpr const char* kNeedsV3 = "compatibility level 1.1 and above (use version=v3 or greater)";
  const auto not_accepted = [](const char* name, const std::string& value) {
    return invalid(fmt::format("Parameter '{}' does not accept value '{}'", name, value));
  };
  qcow2::CreateOptions result;
  result.size = align_up(*options.number("size"), 512);
  result.cluster_size = *options.number("cluster_size");
  result.refcount_bits = static_cast<uint32_t>(std::min<uint64_t>(*options.number("refcount_bits"), 1u << 30));
  result.extended_l2 = options.flag("extended_l2");
  result.lazy_refcounts = options.flag("lazy_refcounts");
  result.backing_file = options.text("backing_file");
  result.backing_format = options.text("backing_fmt");

  const std::string compat = options.text("compat").value_or("1.1");
  if (compat == "0.10" || compat == "v2") {
    result.version = 2;
  } else if (compat != "1.1" && compat != "v3") {
    return not_accepted("version", compat);
  }
  if (result.backing_format && !image::format_of_name(*result.backing_format)) {
    return not_accepted("backing-fmt", *result.backing_format);
  }
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation != "off" && preallocation != "metadata") return not_accepted("preallocation", preallocation);
  result.preallocate_metadata = preallocation == "metadata";
  const std::string compression = options.text("compression_type").value_or("zlib");
  if (compression != "zlib" && compression != "zstd") return not_accepted("compression-type", compression);
  if (compression == "zstd") result.compression_type = qcow2::CompressionType::kZstd;

  if (!std::has_single_bit(result.cluster_size) || result.cluster_size < 512 || result.cluster_size > 2u << 20) {
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  }
  if (result.extended_l2 && result.version < 3) {
    return invalid(fmt::format("Extended L2 entries are only supported with {}", kNeedsV3));
  }
  if (result.extended_l2 && result.cluster_size < 16384) {
    return invalid("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  }
  if (result.preallocate_metadata && result.backing_file && !result.extended_l2) {
    return invalid("Backing file and preallocation can only be used at the same time if extended_l2 is on");
  }
  if (result.backing_format && !result.backing_file) {
    return invalid("Backing format cannot be used without backing file");
  }
  if (result.lazy_refcounts && result.version < 3) {
    return invalid(fmt::format("Lazy refcounts only supported with {}", kNeedsV3));
  }
  if (!std::has_single_bit(result.refcount_bits) || result.refcount_bits > 64) {
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (result.refcount_bits != 16 && result.version < 3) {
    return invalid(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)");
  }
  if (compression != "zlib" && result.version < 3) {
    return invalid(fmt::format("Non-zlib compression type is only supported with {}", kNeedsV3));
  }
  const uint64_t l2_entries = result.cluster_size / (result.extended_l2 ? 16 : 8);
  if (div_round_up(result.size, l2_entries * result.cluster_size) > qcow2::kMaxL1Bytes / 8) {
    return invalid("The image size is too large for file format 'qcow2' (try using a larger cluster size)");
  }
  return result;
}

}  // namespace varve::cli
