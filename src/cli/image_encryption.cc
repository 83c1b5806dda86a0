#include "cli/image_encryption.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace varve::cli {

namespace {

constexpr std::array kLuksOptions = {"cipher-alg", "cipher-mode", "hash-alg",
                                     "iter-time",  "ivgen-alg",   "ivgen-hash-alg"};

std::string full_name(const ImageOptions& options, const char* name) {
  return encryption_prefix(options.format()) + std::string(name);
}
std::optional<std::string> text_of(const ImageOptions& options, const char* name) {
  return options.text(full_name(options, name));
}
std::optional<uint64_t> number_of(const ImageOptions& options, const char* name) {
  return options.number(full_name(options, name));
}

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

// Sets `value` where the option is given; `parse` knows its names.
template <typename Value, typename Parse>
Result<void> take(const ImageOptions& options, const char* name, Parse parse, Value& value) {
  const std::optional<std::string> text = text_of(options, name);
  if (!text) return {};
  const auto parsed = parse(*text);
  if (!parsed) return invalid(fmt::format("Parameter '{}' does not accept value '{}'", name, *text));
  value = *parsed;  // NOLINT(bugprone-optional-value-conversion): some are optional, and some are not
  return {};
}

Result<crypto::LuksFormat> luks_format(const ImageOptions& options) {
  crypto::LuksFormat format;
  const std::string cipher = text_of(options, "cipher-alg").value_or("");
  if (cipher == "des" || cipher == "3des")  // names of QEMU's that are none of LUKS's
    return make_error(ErrorKind::kUnsupported, fmt::format("Algorithm '{}' not supported", cipher));
  TRY(take(options, "cipher-alg", crypto::cipher_named, format.cipher.algorithm));
  TRY(take(options, "cipher-mode", crypto::cipher_mode_named, format.cipher.mode));
  TRY(take(options, "ivgen-alg", crypto::iv_generator_named, format.cipher.iv_generator));
  TRY(take(options, "ivgen-hash-alg", crypto::hash_named, format.cipher.iv_hash));
  TRY(take(options, "hash-alg", crypto::hash_named, format.hash));
  if (format.cipher.iv_generator == crypto::IvGenerator::kEssiv && !format.cipher.iv_hash)
    format.cipher.iv_hash = crypto::HashAlgorithm::kSha256;
  if (const auto time = number_of(options, "iter-time")) {
    const std::string name = full_name(options, "iter-time");
    if (*time > INT64_MAX && !options.text(name)->starts_with("-"))
      return invalid(fmt::format("Parameter '{}' expects integer", name));
    if (*time == 0) return invalid(fmt::format("Parameter '{}' must be greater than zero", name));
    format.iteration_time_ms = *time;
  }
  return format;
}

}  // namespace

const char* encryption_prefix(image::Format format) {
  return format == image::Format::kLuks ? "" : "encrypt.";
}

Result<std::optional<EncryptionOptions>> encryption_options(const ImageOptions& options) {
  if (options.format() == image::Format::kRaw) return std::optional<EncryptionOptions>();
  if (options.format() == image::Format::kLuks) return std::optional(EncryptionOptions{TRY(luks_format(options))});
  const bool old_name = options.flag("encryption");
  std::optional<std::string> format = text_of(options, "format");
  if (old_name && format) return invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  if (old_name) format = "aes";
  const auto given = [&](const char* name) { return text_of(options, name).has_value(); };
  if (!format) {
    if (given("key-secret") || std::ranges::any_of(kLuksOptions, given))
      return invalid("Parameter 'encrypt.format' is missing");
    return std::optional<EncryptionOptions>();
  }
  if (*format == "aes" || *format == "qcow") {
    if (const auto* extra = std::ranges::find_if(kLuksOptions, given); extra != kLuksOptions.end())
      return invalid(fmt::format("Parameter 'encrypt.{}' is unexpected", *extra));
    return std::optional(EncryptionOptions{std::nullopt});
  }
  if (*format != "luks") return invalid(fmt::format("Parameter 'format' does not accept value '{}'", *format));
  return std::optional(EncryptionOptions{TRY(luks_format(options))});
}

Result<std::shared_ptr<const crypto::SecretBytes>> passphrase_of(const ImageOptions& options,
                                                                 const ImageObjects& objects) {
  if (const auto id = text_of(options, "key-secret")) return objects.passphrase(*id);
  return invalid(fmt::format("Parameter '{}' is required for cipher", full_name(options, "key-secret")));
}

Result<void> add_encryption(const ImageOptions& options, const ImageObjects& objects, qcow2::CreateOptions& create) {
  const std::optional<EncryptionOptions> encryption = TRY(encryption_options(options));
  if (!encryption) return {};
  create.passphrase = TRY(passphrase_of(options, objects));
  create.encryption = encryption->luks;
  create.old_aes_encryption = !encryption->luks.has_value();
  return {};
}

Result<void> amend_key_slots(const crypto::LuksArea& area, const ImageOptions& options, const ImageObjects& objects,
                             const crypto::SecretBytes& passphrase, crypto::KeySlotCare care) {
  const std::optional<std::string> state = text_of(options, "state");
  const std::optional<uint64_t> slot = number_of(options, "keyslot");
  const std::optional<uint64_t> time = number_of(options, "iter-time");
  const std::optional<std::string> old_secret = text_of(options, "old-secret");
  const std::optional<std::string> new_secret = text_of(options, "new-secret");
  if (!state) return invalid("Parameter 'state' is missing");
  if (*state == "active") {
    if (!new_secret) return invalid("'new-secret' is required to activate a keyslot");
    if (old_secret) return invalid("'old-secret' must not be given when activating keyslots");
    const auto fresh = TRY(objects.passphrase(*new_secret));
    return crypto::add_key_slot(area, passphrase, *fresh, slot, time.value_or(crypto::LuksFormat().iteration_time_ms),
                                care);
  }
  if (*state != "inactive") return invalid(fmt::format("Parameter 'state' does not accept value '{}'", *state));
  if (new_secret) return invalid("'new-secret' must not be given when erasing keyslots");
  if (time) return invalid("'iter-time' must not be given when erasing keyslots");
  std::shared_ptr<const crypto::SecretBytes> old;
  if (old_secret) old = TRY(objects.passphrase(*old_secret));
  if (slot) return crypto::erase_key_slot(area, *slot, old.get(), care);
  if (old) return crypto::erase_key_slots_of(area, *old, care);
  return invalid(
      "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given");
}

}  // namespace varve::cli
