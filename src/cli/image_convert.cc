// `image convert`: a disk, or a snapshot of it, into a new image.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_convert_arguments.h"
#include "cli/image_convert_bitmaps.h"
#include "cli/image_encryption.h"
#include "cli/image_errors.h"
#include "cli/image_options.h"
#include "cli/image_plan.h"
#include "cli/image_progress.h"
#include "cli/interrupt.h"
#include "cli/new_image.h"
#include "cli/qemu_drivers.h"
#include "image/backing_name.h"
#include "image/convert.h"
#include "image/offload.h"
#include "image/open.h"

namespace varve::cli {

namespace {

// A source disk, with what keeps it open. The view of a snapshot must go before its image.
struct Source {
  image::OpenImage image;
  std::unique_ptr<BlockDevice> snapshot = nullptr;
  image::ConvertSource disk = {};
};

Result<void> select_snapshot(Source& source, const SnapshotSelector& selector) {
  const size_t index = TRY(find_snapshot(source.image, selector));
  source.snapshot = TRY(source.image.qcow2()->open_snapshot(index));
  source.disk.layers.front() = source.snapshot.get();
  return {};
}

Result<std::vector<Source>> open_sources(const ConvertRequest& request) {
  std::vector<Source> sources;
  for (const std::string& word : request.sources) {
    sources.push_back({.image = TRY(open_source(word, request.source, {.use = image::Use::kRead}))});
    for (const auto& device : sources.back().image.devices()) sources.back().disk.layers.push_back(device.get());
  }
  if (request.snapshot) {
    if (sources.size() > 1) {
      return make_error(ErrorKind::kInvalidArgument, "No support for concatenating multiple snapshot");
    }
    if (sources.front().image.has_disk_filter())
      return make_error(ErrorKind::kInvalidArgument,
                        "Failed to load snapshot: Block format 'blkdebug' used by device '' does not support "
                        "temporarily loading internal snapshots");
    TRY(select_snapshot(sources.front(), *request.snapshot));
  }
  for (Source& source : sources) source.disk.size = TRY(source.disk.layers.front()->size());
  return sources;
}

Error cannot_compress() {
  return make_error(ErrorKind::kInvalidArgument, "Compression not supported for this file format");
}

// -o, -B and -F together; -o size is of no effect, as with qemu-img.
Result<ImageOptions> target_options(const ConvertRequest& request, image::Format format, uint64_t size) {
  const char* format_name = name_of(format);
  ImageOptions options(format);
  if (request.options) TRY(options.parse(*request.options));
  TRY(options.set("size", fmt::format("{}", size)));
  if (request.backing_file) {
    if (!options.knows("backing_file")) {
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("Backing file not supported for file format '{}'", format_name));
    }
    TRY(options.set("backing_file", *request.backing_file));
  }
  if (request.backing_format) {
    if (!options.knows("backing_fmt")) {
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("Backing file format not supported for file format '{}'", format_name));
    }
    TRY(options.set("backing_fmt", *request.backing_format));
  }
  if (options.text("backing_file")) {
    if (request.sources.size() > 1) {
      return make_error(ErrorKind::kInvalidArgument,
                        "Having a backing file for the target makes no sense when concatenating multiple input images");
    }
    if (!options.text("backing_fmt")) {
      return make_error(ErrorKind::kInvalidArgument, "Use of backing file requires explicit backing format");
    }
  }
  if (!request.compress) return options;
  if (format != image::Format::kQcow2) return cannot_compress();
  if (options.flag("encryption") || options.text("encrypt.format"))
    return make_error(ErrorKind::kInvalidArgument, "Compression and encryption not supported at the same time");
  if (options.text("preallocation").value_or("off") != "off")
    return make_error(ErrorKind::kInvalidArgument, "Compression and preallocation not supported at the same time");
  return options;
}

// What is known of the target before it is opened.
struct NewTarget {
  bool has_backing = false;
  std::shared_ptr<const crypto::SecretBytes> passphrase = nullptr;  // of an encrypted one
  bool shows_noise = false;  // encrypted, with holes of the file for places that are no zeroes of the disk
};

Result<image::OpenImage> open_target(const ConvertRequest& request, const NewTarget& made) {
  SourceArguments arguments{.format = request.target_format, .image_opts = request.target_image_opts};
  arguments.objects = request.source.objects;
  const CacheMode cache = *parse_cache_mode(request.cache);
  arguments.bypass_cache = cache.direct;
  // -n writes into an image that was there before, and may hold more than this copy.
  const bool no_flush = cache.no_flush && !request.skip_create;
  if (!made.passphrase)
    return open_source(request.target, arguments, {.use = image::Use::kWrite, .no_flush = no_flush});
  image::OpenFailure failure;
  Result<image::OpenImage> opened = image::open_image(request.target,
                                                      {.format = image::format_of_name(*request.target_format),
                                                       .use = image::Use::kWrite,
                                                       .bypass_cache = cache.direct,
                                                       .no_flush = no_flush,
                                                       .encryption = {.passphrase = made.passphrase}},
                                                      &failure);
  if (!opened)
    opened.error().message = fmt::format("Could not open '{}': {}", request.target, qemu_open_reason(failure));
  return opened;
}

Result<NewTarget> make_target(Output& output, const ConvertRequest& request, uint64_t size) {
  const std::optional<image::Format> format = image::format_of_name(*request.target_format);
  if (!format) {
    return make_error(ErrorKind::kInvalidArgument, not_created_reason(*request.target_format));
  }
  if (const auto protocol = image::protocol_of(request.target); protocol && *protocol != "file") {
    return make_error(ErrorKind::kInvalidArgument, not_created_by_reason(*protocol));
  }
  const ImageOptions options = TRY(target_options(request, *format, size));
  Result<void> created = create_image(output, request.target, options, request.source.objects);
  if (!created) {
    created.error().message = fmt::format("{}: error while converting {}: {}", request.target,
                                          name_of(options.format()), created.error().message);
    return created.error();
  }
  NewTarget made{.has_backing = options.text("backing_file").has_value()};
  if (TRY(encryption_options(options))) {
    made.passphrase = TRY(passphrase_of(options, request.source.objects));
    made.shows_noise = *format == image::Format::kLuks || options.text("preallocation").value_or("off") != "off";
  }
  return made;
}

// Errors of the copy say "error while writing at byte 5: …"; the reason is the system's where it gave one.
Error copy_error(Error error, const std::string& target) {
  const size_t end = error.message.find(": ");
  if (error.sys_errno != 0 && error.message.starts_with("error while ") && end != std::string::npos) {
    error.message = error.message.substr(0, end + 2) + std::strerror(error.sys_errno);
  }
  return std::move(error).with_note(fmt::format("'{}' is incomplete, and of no use", target));
}

// Where file systems can do it by themselves: reflinks whenever nobody asked for another layout of the data, copies
// inside the kernel with -C. False where the bytes have to be read and written.
Result<bool> offload(const ConvertRequest& request, const std::vector<Source>& sources, const image::OpenImage& target,
                     uint64_t size) {
  if (sources.size() != 1 || sources[0].image.format() != image::Format::kRaw ||
      target.format() != image::Format::kRaw || sources[0].image.has_filters() || request.sparse_given ||
      request.salvage || request.bytes_per_second != 0) {
    return false;
  }
  FileDevice& from = sources[0].image.file();
  if (TRY(image::share_blocks(from, target.file(), size))) return true;
  return request.offload && TRY(image::copy_in_kernel(from, target.file(), size));
}

// The target is not made: what can be refused before it is, is refused here.
Result<Plan> plan_of(const ConvertRequest& request, const std::vector<Source>& sources, uint64_t size) {
  const std::optional<image::Format> format = image::format_of_name(*request.target_format);
  if (!format) return make_error(ErrorKind::kInvalidArgument, not_created_reason(*request.target_format));
  if (const auto protocol = image::protocol_of(request.target); protocol && *protocol != "file")
    return make_error(ErrorKind::kInvalidArgument, not_created_by_reason(*protocol));
  Plan plan{.title = fmt::format("convert {} to {}", request.sources.front(), request.target),
            .checks = {},
            .steps = {},
            .notes = {}};
  for (const std::string& source : request.sources) plan.checks.push_back(fmt::format("{} can be read", source));
  if (request.skip_create) {
    SourceArguments arguments{.format = request.target_format, .image_opts = request.target_image_opts};
    arguments.objects = request.source.objects;
    arguments.dry_run = request.source.dry_run;
    const image::OpenImage target = TRY(open_source(request.target, arguments, {.use = image::Use::kWrite}));
    if (request.compress && (target.qcow2() == nullptr || target.has_disk_filter())) return cannot_compress();
    if (TRY(target.device()->size()) < size)
      return make_error(ErrorKind::kInvalidArgument, "output file is smaller than input file");
    plan.checks.push_back(fmt::format("{} can be written, and nobody uses it", request.target));
    plan.notes.push_back(fmt::format("what {} holds now is overwritten", request.target));
  } else {
    const ImageOptions options = TRY(target_options(request, *format, size));
    TRY(check_target(plan, request.target));
    TRY(check_new_image(options, request.source.objects));
    plan.steps.push_back(fmt::format("make a {} image of a disk of {}", name_of(*format), bytes_text(size)));
  }
  uint64_t data = 0;
  for (const Source& source : sources) {
    const bool only_top = request.backing_file.has_value();
    const auto extents = only_top ? source.disk.layers.front()->extents(0, source.disk.size)
                                  : image::visible_extents(source.disk.layers, 0, source.disk.size);
    for (const Extent& extent : TRY(extents))
      if (extent.kind == ExtentKind::kData) data += extent.length;
  }
  plan.steps.push_back(fmt::format("copy up to {} of data{}", bytes_text(data),
                                   request.sparse_size == 0 ? "" : ", less what is zeroes"));
  return plan;
}

Result<void> run(Output& output, const ConvertRequest& request) {
  ImageProgress progress(output, request.progress && !request.source.dry_run.wanted);
  std::vector<Source> sources = TRY(open_sources(request));
  std::vector<image::ConvertSource> disks;
  uint64_t size = 0;
  for (const Source& source : sources) {
    disks.push_back(source.disk);
    size += source.disk.size;
  }
  std::vector<qcow2::DirtyBitmap> bitmaps;
  if (request.bitmaps) {
    if (sources.size() > 1)
      return make_error(ErrorKind::kInvalidArgument, "Copying bitmaps only possible with single source");
    if (sources.front().image.has_disk_filter())
      return make_error(ErrorKind::kInvalidArgument, "Source lacks bitmap support");
    bitmaps = TRY(bitmaps_to_copy(sources.front().image, request.skip_broken_bitmaps));
  }
  if (request.source.dry_run.wanted) {
    print_image_plan(output, request.source.dry_run, TRY(plan_of(request, sources, size)));
    return {};
  }
  NewTarget made{.has_backing = request.backing_file.has_value()};
  if (!request.skip_create) made = TRY(make_target(output, request, size));
  const bool has_backing = made.has_backing;
  const image::OpenImage target = TRY(open_target(request, made));
  if (request.bitmaps && (target.qcow2() == nullptr || target.qcow2()->header().version < 3)) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("Format driver '{}' does not support bitmaps", name_of(target.format())));
  }
  if (request.compress && (target.qcow2() == nullptr || target.has_disk_filter())) return cannot_compress();
  if (TRY(target.device()->size()) < size) {
    return make_error(ErrorKind::kInvalidArgument, "output file is smaller than input file");
  }
  const bool is_new = !request.skip_create && !target.file().is_block_device();
  image::ConvertOptions options;
  options.sparse_size = request.sparse_size;
  if (!has_backing && ((is_new && !made.shows_noise) || request.target_is_zero)) options.target_zero_from = 0;
  if (has_backing && is_new && !made.shows_noise) options.target_zero_from = TRY(target.devices().at(1)->size());
  options.only_top_layer = has_backing;
  if (request.compress) options.compress_into = target.qcow2();
  options.bytes_per_second = request.bytes_per_second;
  if (request.progress) options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  if (request.salvage) {
    const auto warning = [&](const char* what) {
      return [&output, what, quiet = request.quiet](uint64_t offset, const Error& error) {
        if (quiet) return;
        output.error(fmt::format("warning: error while reading {} {}: {}", what, offset,
                                 error.sys_errno != 0 ? std::strerror(error.sys_errno) : error.message));
      };
    };
    options.salvage = {.unreadable = warning("offset"), .unknown = warning("block status at offset")};
  }
  options.interrupted = interrupted;
  const InterruptWatch watch;
  const Result<bool> offloaded = is_new ? offload(request, sources, target, size) : Result<bool>(false);
  if (!offloaded) return copy_error(offloaded.error(), request.target);
  Result<void> copied = *offloaded ? Result<void>() : image::convert(disks, *target.device(), options);
  if (!copied && copied.error().kind == ErrorKind::kInterrupted) {
    TRY(target.device()->flush());
    return make_error(ErrorKind::kInterrupted,
                      fmt::format("interrupted: '{}' holds the first {} of {} bytes, and is a whole image",
                                  request.target, copied.error().offset.value_or(0), size));
  }
  if (copied) copied = target.device()->flush();
  if (!copied) return copy_error(std::move(copied).error(), request.target);
  if (request.bitmaps) TRY(copy_bitmaps(output, bitmaps, size, target));
  progress.finish();
  return {};
}

}  // namespace

ImageExit image_convert(const ImageCall& call) {
  ConvertArguments arguments = parse_convert_arguments(call);
  if (arguments.finished) return *arguments.finished;
  const Result<void> done = run(call.output, arguments.request);
  if (!done) return image_failure(call.output, done.error().message, &done.error());
  return {0};
}

}  // namespace varve::cli
