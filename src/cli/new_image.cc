#include "cli/new_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cli/image_encryption.h"
#include "image/create.h"

namespace varve::cli {

namespace {

Result<void> create(Output& output, const std::string& path, const ImageOptions& options, const ImageObjects& objects) {
  image::FileOptions file_options;
  file_options.nocow = options.flag("nocow");
  file_options.extent_size_hint = options.number("extent_size_hint");
  file_options.warn = [&](const std::string& text) { output.error("warning: " + text); };
  const std::string preallocation = options.text("preallocation").value_or("off");
  if (preallocation == "metadata") file_options.space = image::NewSpace::kMetadata;
  if (preallocation == "falloc") file_options.space = image::NewSpace::kReserved;
  if (preallocation == "full") file_options.space = image::NewSpace::kWritten;
  if (options.format() == image::Format::kRaw) {
    TRY(check_raw_options(options));
    return image::create_raw(path, *options.number("size"), file_options);
  }
  if (options.format() == image::Format::kLuks) {
    const auto is_known = [&](const char* name) { return preallocation == name; };
    if (std::ranges::none_of(std::array{"off", "metadata", "falloc", "full"}, is_known))
      return make_error(ErrorKind::kInvalidArgument, fmt::format("invalid parameter value: {}", preallocation));
    const std::optional<EncryptionOptions> encryption = TRY(encryption_options(options));
    const auto passphrase = TRY(passphrase_of(options, objects));
    return image::create_luks(path, *options.number("size"), *encryption->luks, *passphrase, file_options);
  }
  qcow2::CreateOptions image = TRY(qcow2_create_options(options));
  TRY(add_encryption(options, objects, image));
  return image::create_qcow2(path, image, file_options);
}

}  // namespace

Result<void> check_new_image(const ImageOptions& options, const ImageObjects& objects) {
  if (options.format() == image::Format::kRaw) return check_raw_options(options);
  if (options.format() == image::Format::kLuks) {
    TRY(encryption_options(options));
    TRY(passphrase_of(options, objects));
    return {};
  }
  qcow2::CreateOptions image = TRY(qcow2_create_options(options));
  return add_encryption(options, objects, image);
}

Result<void> create_image(Output& output, const std::string& path, const ImageOptions& options,
                          const ImageObjects& objects) {
  Result<void> created = create(output, path, options, objects);
  if (!created) created.error().message = qemu_create_reason(created.error(), path, options);
  return created;
}

}  // namespace varve::cli
