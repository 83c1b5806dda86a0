// `image amend`: the format options of an image that exists.
#include <fmt/format.h>

#include <bit>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_encryption.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/image_plan.h"
#include "cli/image_progress.h"
#include "cli/image_source.h"
#include "cli/qemu_drivers.h"
#include "image/resize.h"
#include "qcow2/luks_area.h"

namespace varve::cli {

namespace {

struct AmendRequest {
  std::string path;
  SourceArguments source;
  std::optional<std::string> options;  // -o
  std::string cache = "writeback";
  bool force = false;
  bool progress = false;
  bool quiet = false;
};

Error invalid(std::string message) {
  return make_error(ErrorKind::kInvalidArgument, std::move(message));
}

// What the image is to become; what is not given stays.
struct Amendment {
  uint32_t version = 3;
  uint32_t refcount_bits = 16;
  bool lazy_refcounts = false;
  bool data_file_raw = false;
  std::optional<std::string> data_file;
  std::optional<uint64_t> size;
  bool key_slots = false;
};

// In QEMU's order: the first thing that does not fit is named.
Result<Amendment> read_amendment(const ImageOptions& options, const qcow2::Header& header) {
  Amendment to{.version = header.version,
               .refcount_bits = header.refcount_bits(),
               .lazy_refcounts = header.lazy_refcounts(),
               .data_file_raw = header.has_raw_data_file(),
               .data_file = options.text("data_file"),
               .size = options.number("size"),
               .key_slots = false};
  for (const char* name :
       {"encrypt.state", "encrypt.keyslot", "encrypt.old-secret", "encrypt.new-secret", "encrypt.iter-time"}) {
    if (!options.text(name)) continue;
    if (header.crypt_method == qcow2::CryptMethod::kNone)
      return invalid("Can't amend encryption options - encryption not present");
    if (header.crypt_method != qcow2::CryptMethod::kLuks) return invalid("Only LUKS encryption options can be amended");
    to.key_slots = true;
  }
  if (const auto compat = options.text("compat")) {
    if (*compat != "0.10" && *compat != "v2" && *compat != "1.1" && *compat != "v3")
      return invalid("Unknown compatibility level " + *compat);
    to.version = *compat == "0.10" || *compat == "v2" ? 2 : 3;
  }
  if (to.data_file && !header.has_data_file())
    return invalid("data-file can only be set for images that use an external data file");
  if (options.text("data_file_raw")) to.data_file_raw = options.flag("data_file_raw");
  if (to.data_file_raw && !header.has_raw_data_file()) return invalid("data-file-raw cannot be set on existing images");
  if (options.text("lazy_refcounts")) to.lazy_refcounts = options.flag("lazy_refcounts");
  if (const auto bits = options.number("refcount_bits")) {
    if (!std::has_single_bit(*bits) || *bits > 64)
      return invalid("Refcount width must be a power of two and may not exceed 64 bits");
    to.refcount_bits = static_cast<uint32_t>(*bits);
  }
  return to;
}

Result<void> check_backing(const ImageOptions& options, const qcow2::Header& header) {
  const auto file = options.text("backing_file");
  const auto format = options.text("backing_fmt");
  if (!file && !format) return {};
  if (file == header.backing_file && format == header.backing_format) return {};
  return invalid("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
}

Result<void> set_flags(qcow2::Image& image, const Amendment& to) {
  const qcow2::Header& now = image.header();
  if (to.lazy_refcounts && to.version < 3 && !now.lazy_refcounts()) {
    return invalid("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)");
  }
  if (to.lazy_refcounts == now.lazy_refcounts() && to.data_file_raw == now.has_raw_data_file() && !to.data_file)
    return {};
  return image.update_header([&](qcow2::Header& header) {
    header.compatible_features &= ~uint64_t{qcow2::kCompatLazyRefcounts};
    if (to.lazy_refcounts) header.compatible_features |= qcow2::kCompatLazyRefcounts;
    if (!to.data_file_raw) header.autoclear_features &= ~uint64_t{qcow2::kAutoclearRawDataFile};
    if (to.data_file) header.data_file = to.data_file->empty() ? std::nullopt : to.data_file;
  });
}

Result<void> change_key_slots(const crypto::LuksArea& area, const ImageOptions& options, const AmendRequest& request) {
  const ImageSource source = TRY(find_source(request.path, request.source));
  if (!source.key_secret)
    return invalid(fmt::format("Parameter '{}key-secret' is required for cipher", encryption_prefix(options.format())));
  const auto passphrase = TRY(request.source.objects.passphrase(*source.key_secret));
  return amend_key_slots(area, options, request.source.objects, *passphrase,
                         request.force ? crypto::KeySlotCare::kForce : crypto::KeySlotCare::kRefuseLoss);
}

Result<void> amend(const image::OpenImage& opened, const ImageOptions& options, const AmendRequest& request,
                   ImageProgress& progress) {
  if (opened.luks() != nullptr) return change_key_slots(TRY(opened.luks()->area()), options, request);
  qcow2::Image& image = *opened.qcow2();
  const Amendment to = TRY(read_amendment(options, image.header()));
  const bool new_version = to.version != image.header().version;
  const bool new_width = to.refcount_bits != image.header().refcount_bits();
  const uint64_t parts = (new_version ? 1 : 0) + (new_width ? 1 : 0) + (to.key_slots ? 1 : 0);
  if (to.version > image.header().version) {
    TRY(image.upgrade());
    progress.update(1, parts);
  }
  if (to.key_slots) TRY(change_key_slots(TRY(qcow2::luks_area(image.file(), image.header())), options, request));
  if (new_width) {
    if (to.version < 3 && to.refcount_bits != 16) {
      return invalid(
          "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or "
          "greater)");
    }
    TRY(image.change_refcount_bits(to.refcount_bits));
    progress.update(to.version < image.header().version ? 1 : parts, parts);
  }
  TRY(check_backing(options, image.header()));
  TRY(set_flags(image, to));
  if (to.size.value_or(0) != 0) TRY(image::resize(opened, *to.size, image::NewSpace::kSparse));
  if (to.version == image.header().version) return {};
  return image.downgrade([&](uint64_t done, uint64_t total) {  // the last part
    progress.update((parts - 1) * total + done, parts * total);
  });
}

// After the rehearsal; `before` is the header of a qcow2 image as it was.
Plan plan_of(const AmendRequest& request, const image::OpenImage& image, const std::optional<qcow2::Header>& before) {
  Plan plan = begin_image_plan(fmt::format("amend {}", request.path), image);
  const auto change = [&](const char* what, const auto& from, const auto& to) {
    if (from != to) plan.steps.push_back(fmt::format("change {} from {} to {}", what, from, to));
  };
  if (before) {
    const qcow2::Header& after = image.qcow2()->header();
    change("the version", before->version, after.version);
    change("the width of refcounts", before->refcount_bits(), after.refcount_bits());
    change("lazy refcounts", before->lazy_refcounts(), after.lazy_refcounts());
    change("data_file_raw", before->has_raw_data_file(), after.has_raw_data_file());
    change("the external data file's name", before->data_file.value_or("none"), after.data_file.value_or("none"));
    change("the disk's size", before->size, after.size);
    if (after.size < before->size)
      plan.notes.push_back(fmt::format("what the disk's last {} hold is gone", bytes_text(before->size - after.size)));
  }
  if (request.options->find("new-secret") != std::string::npos || request.options->find("state=") != std::string::npos)
    plan.steps.push_back("change the key slots");
  add_file_steps(plan, image);
  if (plan.steps.empty()) plan.notes.push_back("the image is so already: nothing would be written");
  return plan;
}

ImageExit print_help(Output& output, image::Format format) {
  if (format == image::Format::kRaw) {
    return image_failure(output, not_amended_reason(name_of(format)));
  }
  output.print(amend_help(format));
  return {0};
}

ImageExit run(Output& output, const AmendRequest& request) {
  if (!parse_cache_mode(request.cache)) return image_failure(output, "Invalid cache option: " + request.cache);
  const Result<image::OpenImage> opened = open_source(request.path, request.source, {.use = image::Use::kWrite});
  if (!opened) return image_failure(output, opened.error());
  if (opened->has_disk_filter()) return image_failure(output, not_amended_reason("blkdebug"));
  if (opened->format() == image::Format::kRaw || asks_for_help(*request.options))
    return print_help(output, opened->format());
  ImageOptions options(opened->format(), OptionUse::kAmend);
  if (Result<void> parsed = options.parse(*request.options); !parsed) {
    std::string message = parsed.error().message;
    if (ImageOptions(opened->format()).parse(*request.options))
      message += "\nThis option is only supported for image creation";
    return image_failure(output, message);
  }
  const auto before = opened->qcow2() == nullptr ? std::nullopt : std::optional(opened->qcow2()->header());
  const DryRun& dry_run = request.source.dry_run;
  Result<void> done;
  {
    ImageProgress progress(output, request.progress && !request.quiet && !dry_run.wanted);
    done = amend(*opened, options, request, progress);
    progress.finish();
  }
  if (!done) return image_failure(output, done.error());
  if (dry_run.wanted) {
    if (const auto enough = check_space(*opened); !enough) return space_failure(output, enough.error());
    return print_image_plan(output, dry_run, plan_of(request, *opened, before));
  }
  return {0};
}

}  // namespace

ImageExit image_amend(const ImageCall& call) {
  constexpr int kForce = 1000;
  ParsedImageArguments parsed = parse_image_arguments(call, "ho:f:t:pq",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force", false, kForce}});
  if (parsed.failed) return *parsed.failed;
  AmendRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'o':
        if (!is_option_list(value)) return image_failure(call.output, "Invalid option list: " + value);
        request.options = request.options ? *request.options + "," + value : value;
        break;
      case 't':
        request.cache = value;
        break;
      case 'p':
        request.progress = true;
        break;
      case 'q':
        request.quiet = true;
        break;
      default:
        request.force = true;
    }
  }
  if (!request.options) return usage_failure(call.output, "Must specify options (-o)");
  if (request.source.format && asks_for_help(*request.options)) {
    const std::optional<image::Format> format = image::format_of_name(*request.source.format);
    if (!format) return image_failure(call.output, not_amended_reason(*request.source.format));
    return print_help(call.output, *format);
  }
  if (parsed.operands.size() != 1) return image_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  if (auto refused = refused_for_space(call.output, request, request.path, run)) return *refused;
  return run(call.output, request);
}

}  // namespace varve::cli
