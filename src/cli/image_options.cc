#include "cli/image_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <span>

#include "base/checked.h"
#include "base/units.h"
#include "cli/image_errors.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"

namespace varve::cli {

namespace {

enum class Type : uint8_t { kText, kFlag, kNumber, kSize };
enum class UsedBy : uint8_t { kCreate, kAmend, kBoth };

}  // namespace

struct ImageOptionDescription {
  const char* name;
  Type type;
  const char* initial;  // of a new image; null: not printed unless given
  bool of_file;         // offered by the file system rather than by the format
  const char* help;     // as qemu-img has it
  UsedBy used_by = UsedBy::kCreate;
};

namespace {

constexpr const char* kExtentSizeHelp = "Extent size hint for the image file, 0 to disable";
constexpr const char* kFilePreallocationHelp = "Preallocation mode (allowed values: off, falloc, full)";
constexpr const char* kNocowHelp = "Turn off copy-on-write (valid only on btrfs)";

// In the order in which QEMU prints them.
constexpr ImageOptionDescription kQcow2Options[] = {
    {"encryption", Type::kFlag, nullptr, false,
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"},
    {"encrypt.format", Type::kText, nullptr, false, "Encrypt the image, format choices: 'aes', 'luks'"},
    {"encrypt.key-secret", Type::kText, nullptr, false, "ID of secret providing qcow AES key or LUKS passphrase"},
    {"encrypt.cipher-alg", Type::kText, nullptr, false, "Name of encryption cipher algorithm"},
    {"encrypt.cipher-mode", Type::kText, nullptr, false, "Name of encryption cipher mode"},
    {"encrypt.ivgen-alg", Type::kText, nullptr, false, "Name of IV generator algorithm"},
    {"encrypt.ivgen-hash-alg", Type::kText, nullptr, false, "Name of IV generator hash algorithm"},
    {"encrypt.hash-alg", Type::kText, nullptr, false, "Name of encryption hash algorithm"},
    {"encrypt.iter-time", Type::kNumber, nullptr, false, "Time to spend in PBKDF in milliseconds", UsedBy::kBoth},
    {"encrypt.state", Type::kText, nullptr, false, "Select new state of affected keyslots (active/inactive)",
     UsedBy::kAmend},
    {"encrypt.keyslot", Type::kNumber, nullptr, false, "Select a single keyslot to modify explicitly", UsedBy::kAmend},
    {"encrypt.old-secret", Type::kText, nullptr, false, "Select all keyslots that match this password", UsedBy::kAmend},
    {"encrypt.new-secret", Type::kText, nullptr, false,
     "New secret to set in the matching keyslots. Empty string to erase", UsedBy::kAmend},
    {"cluster_size", Type::kSize, "65536", false, "qcow2 cluster size"},
    {"extended_l2", Type::kFlag, "off", false, "Extended L2 tables"},
    {"preallocation", Type::kText, nullptr, false,
     "Preallocation mode (allowed values: off, metadata, falloc, full)"},
    {"compression_type", Type::kText, "zlib", false, "Compression method used for image cluster compression"},
    {"size", Type::kSize, nullptr, false, "Virtual disk size", UsedBy::kBoth},
    {"compat", Type::kText, nullptr, false, "Compatibility level (v2 [0.10] or v3 [1.1])", UsedBy::kBoth},
    {"backing_file", Type::kText, nullptr, false, "File name of a base image", UsedBy::kBoth},
    {"backing_fmt", Type::kText, nullptr, false, "Image format of the base image", UsedBy::kBoth},
    {"data_file", Type::kText, nullptr, false, "File name of an external data file", UsedBy::kBoth},
    {"data_file_raw", Type::kFlag, nullptr, false, "The external data file must stay valid as a raw image",
     UsedBy::kBoth},
    {"lazy_refcounts", Type::kFlag, "off", false, "Postpone refcount updates", UsedBy::kBoth},
    {"refcount_bits", Type::kNumber, "16", false, "Width of a reference count entry in bits", UsedBy::kBoth},
    {"nocow", Type::kFlag, nullptr, true, kNocowHelp},
    {"extent_size_hint", Type::kSize, nullptr, true, kExtentSizeHelp},
};
constexpr ImageOptionDescription kRawOptions[] = {
    {"size", Type::kSize, nullptr, false, "Virtual disk size"},
    {"nocow", Type::kFlag, nullptr, true, kNocowHelp},
    {"preallocation", Type::kText, nullptr, true, kFilePreallocationHelp},
    {"extent_size_hint", Type::kSize, nullptr, true, kExtentSizeHelp},
};
constexpr ImageOptionDescription kLuksOptions[] = {
    {"size", Type::kSize, nullptr, false, "Virtual disk size"},
    {"key-secret", Type::kText, nullptr, false, "ID of the secret that provides the keyslot passphrase"},
    {"cipher-alg", Type::kText, nullptr, false, "Name of encryption cipher algorithm"},
    {"cipher-mode", Type::kText, nullptr, false, "Name of encryption cipher mode"},
    {"ivgen-alg", Type::kText, nullptr, false, "Name of IV generator algorithm"},
    {"ivgen-hash-alg", Type::kText, nullptr, false, "Name of IV generator hash algorithm"},
    {"hash-alg", Type::kText, nullptr, false, "Name of encryption hash algorithm"},
    {"iter-time", Type::kNumber, nullptr, false, "Time to spend in PBKDF in milliseconds", UsedBy::kBoth},
    {"state", Type::kText, nullptr, false, "Select new state of affected keyslots (active/inactive)", UsedBy::kAmend},
    {"keyslot", Type::kNumber, nullptr, false, "Select a single keyslot to modify explicitly", UsedBy::kAmend},
    {"old-secret", Type::kText, nullptr, false, "Select all keyslots that match this password", UsedBy::kAmend},
    {"new-secret", Type::kText, nullptr, false, "New secret to set in the matching keyslots. Empty string to erase",
     UsedBy::kAmend},
    {"nocow", Type::kFlag, nullptr, true, kNocowHelp},
    {"preallocation", Type::kText, nullptr, true, kFilePreallocationHelp},
    {"extent_size_hint", Type::kSize, nullptr, true, kExtentSizeHelp},
};

// For create, amend, or both.
std::span<const ImageOptionDescription> all_options_of(image::Format format) {
  switch (format) {
    case image::Format::kRaw:
      return kRawOptions;
    case image::Format::kQcow2:
      return kQcow2Options;
    case image::Format::kLuks:
      return kLuksOptions;
  }
  return {};
}

std::vector<ImageOptionDescription> options_of(image::Format format, OptionUse use) {
  const std::span<const ImageOptionDescription> all = all_options_of(format);
  const UsedBy other = use == OptionUse::kAmend ? UsedBy::kCreate : UsedBy::kAmend;
  std::vector<ImageOptionDescription> options;
  for (const ImageOptionDescription& option : all) {
    if (option.used_by == other) continue;
    options.push_back(option);
    if (use == OptionUse::kAmend) options.back().initial = nullptr;
  }
  return options;
}

std::optional<ImageOptionDescription> find(image::Format format, OptionUse use, const std::string& name) {
  const std::vector<ImageOptionDescription> options = options_of(format, use);
  const auto found = std::ranges::find(options, name, &ImageOptionDescription::name);
  return found == options.end() ? std::nullopt : std::optional(*found);
}

// Sorted by name, as QEMU prints them.
std::string listing(std::span<const ImageOptionDescription> options, bool with_file) {
  std::vector<ImageOptionDescription> listed;
  for (const ImageOptionDescription& option : options) {
    if (with_file || !option.of_file) listed.push_back(option);
  }
  std::ranges::sort(listed, [](const auto& a, const auto& b) { return std::string_view(a.name) < b.name; });
  std::string text;
  for (const ImageOptionDescription& option : listed) {
    const char* type = option.type == Type::kText     ? "str"
                       : option.type == Type::kFlag   ? "bool (on/off)"
                       : option.type == Type::kNumber ? "num"
                                                      : "size";
    text += fmt::format("  {:<22} - {}\n", fmt::format("{}=<{}>", option.name, type), option.help);
  }
  return text;
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
  std::string text = with_file ? "Supported options:\n" : fmt::format("Supported {} options:\n", name_of(format));
  text += listing(options_of(format, OptionUse::kCreate), with_file);
  if (!with_file) {
    text +=
        "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n";
  }
  return text;
}

std::string amend_help(image::Format format) {
  return fmt::format("Amend options for '{}':\n", name_of(format)) +
         listing(options_of(format, OptionUse::kAmend), false);
}

bool ImageOptions::knows(const std::string& name) const {
  return find(format_, use_, name).has_value();
}

Result<void> ImageOptions::set(const std::string& name, const std::string& text) {
  const std::optional<ImageOptionDescription> option = find(format_, use_, name);
  if (!option) return invalid(fmt::format("Invalid parameter '{}'", name));
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
  const std::optional<ImageOptionDescription> option = find(format_, use_, name);
  if (option && option->initial != nullptr) return std::strtoull(option->initial, nullptr, 10);
  return std::nullopt;
}

bool ImageOptions::flag(const std::string& name) const {
  const auto found = values_.find(name);
  return found != values_.end() && found->second.flag;
}

std::string ImageOptions::formatted() const {
  std::string text;
  for (const ImageOptionDescription& option : options_of(format_, use_)) {
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

std::string qemu_create_reason(const Error& error, const std::string& path, const ImageOptions& options) {
  const std::optional<std::string> data_file = options.text("data_file");
  return qemu_reason(error, data_file && error.path == *data_file ? *data_file : image::resolve_backing_name("", path),
                     "create");
}

Result<void> check_raw_options(const ImageOptions& options) {
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation == "off" || preallocation == "falloc" || preallocation == "full") return {};
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
  result.data_file = options.text("data_file");
  result.data_file_raw = options.flag("data_file_raw");
  result.backing_file = options.text("backing_file");
  result.backing_format = options.text("backing_fmt");

  const std::string compat = options.text("compat").value_or("1.1");
  if (compat == "0.10" || compat == "v2") {
    result.version = 2;
  } else if (compat != "1.1" && compat != "v3") {
    return not_accepted("version", compat);
  }
  if (result.backing_format && !is_qemu_driver(*result.backing_format)) {
    return not_accepted("backing-fmt", *result.backing_format);
  }
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation != "off" && preallocation != "metadata" && preallocation != "falloc" && preallocation != "full")
    return not_accepted("preallocation", preallocation);
  result.preallocate_metadata = preallocation != "off";
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
  if (result.data_file_raw && !result.data_file) return invalid("data-file-raw requires data-file");
  if (result.data_file_raw && result.backing_file) {
    return invalid("Backing file and data-file-raw cannot be used at the same time");
  }
  if (result.data_file && result.version < 3) {
    return invalid(fmt::format("External data files are only supported with {}", kNeedsV3));
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
