// `image bitmap`: adds, removes and changes the persistent dirty bitmaps of a qcow2 image. Only that file is opened,
// and the one that --merge takes a bitmap from.
#include <fmt/format.h>

#include <algorithm>

#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/image_source.h"
#include "image/open.h"

namespace varve::cli {

namespace {

using qcow2::DirtyBitmap;

enum class BitmapAction : uint8_t { kAdd, kRemove, kClear, kEnable, kDisable, kMerge };

struct BitmapStep {
  BitmapAction action;
  std::string source;  // kMerge: the bitmap to take bits from
};

struct BitmapRequest {
  std::vector<BitmapStep> steps;
  std::optional<uint64_t> granularity;
  SourceArguments source;
  std::optional<std::string> merge_path;    // -b
  std::optional<std::string> merge_format;  // -F
  std::string path;
  std::string bitmap;
};

const char* name_of(BitmapAction action) {
  switch (action) {
    case BitmapAction::kAdd:
      return "add";
    case BitmapAction::kRemove:
      return "remove";
    case BitmapAction::kClear:
      return "clear";
    case BitmapAction::kEnable:
      return "enable";
    case BitmapAction::kDisable:
      return "disable";
    case BitmapAction::kMerge:
      return "merge";
  }
  return "";
}

Result<std::vector<DirtyBitmap>::iterator> find(std::vector<DirtyBitmap>& bitmaps, const std::string& name) {
  const auto it = std::ranges::find(bitmaps, name, &DirtyBitmap::name);
  if (it == bitmaps.end()) return make_error(ErrorKind::kNotFound, fmt::format("Dirty bitmap '{}' not found", name));
  return it;
}

Result<void> check_usable(const DirtyBitmap& bitmap) {
  if (!bitmap.inconsistent) return {};
  return make_error(ErrorKind::kRefused,
                    fmt::format("Bitmap '{}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to "
                                "delete this bitmap from disk",
                                bitmap.name))
      .with_note(fmt::format("a program that recorded writes in it ended without storing it; `image bitmap --remove "
                             "IMAGE '{}'` takes it away",
                             bitmap.name));
}

// Where --merge finds its source: another image, or the image itself.
struct MergeSource {
  std::optional<std::vector<DirtyBitmap>> other;
  uint64_t disk_size = 0;  // of the other image
};

Result<void> apply(const BitmapStep& step, const BitmapRequest& request, const qcow2::Header& header,
                   std::vector<DirtyBitmap>& bitmaps, MergeSource& source) {
  if (step.action == BitmapAction::kAdd) {
    if (find(bitmaps, request.bitmap))
      return make_error(ErrorKind::kInvalidArgument, "Bitmap already exists: " + request.bitmap);
    const auto cannot_persist = [&](ErrorKind kind, const std::string& why) {
      return make_error(
          kind, fmt::format("Can't make bitmap '{}' persistent in '{}': {}", request.bitmap, request.path, why));
    };
    if (request.bitmap.size() > qcow2::kMaxBitmapNameBytes)
      return cannot_persist(ErrorKind::kInvalidArgument,
                            fmt::format("Name length exceeds maximum ({} characters)", qcow2::kMaxBitmapNameBytes));
    DirtyBitmap added =
        TRY(qcow2::make_bitmap(request.bitmap, request.granularity.value_or(qcow2::default_granularity(header)),
                               header.size, header.cluster_size()));
    if (header.version < 3)
      return cannot_persist(ErrorKind::kUnsupported, "Cannot store dirty bitmaps in qcow2 v2 files");
    bitmaps.push_back(std::move(added));
    return {};
  }
  const auto bitmap = TRY(find(bitmaps, request.bitmap));
  if (step.action == BitmapAction::kRemove) {
    bitmaps.erase(bitmap);
    return {};
  }
  TRY(check_usable(*bitmap));
  switch (step.action) {
    case BitmapAction::kClear:
      bitmap->clear();
      break;
    case BitmapAction::kEnable:
      bitmap->recording = true;
      break;
    case BitmapAction::kDisable:
      bitmap->recording = false;
      break;
    default: {
      const auto from = TRY(find(source.other ? *source.other : bitmaps, step.source));
      TRY(check_usable(*from));
      if (source.other && source.disk_size != header.size)
        return make_error(ErrorKind::kInvalidArgument,
                          fmt::format("Bitmaps are of different sizes (destination size is {}, source size is {}) and "
                                      "can't be merged",
                                      header.size, source.disk_size));
      qcow2::merge_bitmap(*bitmap, *from, header.size);
    }
  }
  return {};
}

// After the rehearsal.
Plan plan_of(const BitmapRequest& request, const image::OpenImage& image) {
  Plan plan = begin_image_plan(fmt::format("change the bitmap '{}' of {}", request.bitmap, request.path), image);
  for (const BitmapStep& step : request.steps)
    plan.steps.push_back(step.action == BitmapAction::kMerge
                             ? fmt::format("merge the bitmap '{}'{} into '{}'", step.source,
                                           request.merge_path ? " of " + *request.merge_path : "", request.bitmap)
                             : fmt::format("{} the bitmap '{}'", name_of(step.action), request.bitmap));
  add_file_steps(plan, image);
  return plan;
}

ImageExit run(Output& output, const BitmapRequest& request) {
  const auto cannot_open = [&](const std::string& path, const std::string& reason, const Error* error) {
    return image_failure(output, fmt::format("Could not open '{}': {}", path, reason), error);
  };
  const auto opened =
      open_source(request.path, request.source, {.use = image::Use::kWriteMetadata, .open_backing = false});
  if (!opened) return image_failure(output, opened.error());
  const auto failed = [&](const BitmapStep& step, const Error& error) {
    return image_failure(
        output,
        fmt::format("Operation {} on bitmap {} failed: {}", name_of(step.action), request.bitmap, error.message),
        &error);
  };

  if (opened->has_disk_filter()) {
    const Error error = make_error(ErrorKind::kUnsupported, "blkdebug keeps no bitmaps; it can lie below the format");
    return failed(request.steps.front(), error);
  }

  MergeSource source;
  std::optional<image::OpenImage> source_image;
  if (request.merge_path) {
    auto other = open_source(*request.merge_path, {.format = request.merge_format},
                             {.use = image::Use::kInspect, .open_backing = false});
    if (!other) return image_failure(output, other.error());
    source_image = std::move(*other);
    source.other.emplace();
    if (source_image->qcow2() != nullptr) {
      auto theirs = source_image->qcow2()->bitmaps();
      if (!theirs) return cannot_open(*request.merge_path, theirs.error().message, &theirs.error());
      source.other = std::move(*theirs);
      source.disk_size = source_image->qcow2()->header().size;
    }
  }

  qcow2::Image* image = opened->qcow2();
  if (image == nullptr) {
    // Other formats have no place for bitmaps: none is found, none can be stored.
    const BitmapStep& step = request.steps.front();
    return failed(
        step, step.action == BitmapAction::kAdd
                  ? make_error(ErrorKind::kUnsupported,
                               fmt::format("Can't store persistent bitmaps to a {} image", name_of(opened->format())))
                  : make_error(ErrorKind::kNotFound, fmt::format("Dirty bitmap '{}' not found", request.bitmap)));
  }
  auto bitmaps = image->bitmaps();
  if (!bitmaps) return cannot_open(request.path, bitmaps.error().message, &bitmaps.error());
  for (const BitmapStep& step : request.steps)
    if (auto done = apply(step, request, image->header(), *bitmaps, source); !done) return failed(step, done.error());
  if (auto stored = image->store_bitmaps(*bitmaps); !stored) return failed(request.steps.back(), stored.error());
  const DryRun& dry_run = request.source.dry_run;
  if (dry_run.wanted) {
    if (const auto enough = check_space(*opened); !enough) return space_failure(output, enough.error());
    return print_image_plan(output, dry_run, plan_of(request, *opened));
  }
  return {0};
}

}  // namespace

ImageExit image_bitmap(const ImageCall& call) {
  enum : int { kAdd = 512, kRemove, kClear, kEnable, kDisable, kMerge };
  ParsedImageArguments parsed = parse_image_arguments(call, "b:f:F:g:hU",
                                                      {{"help", false, 'h'},
                                                       {"object", true, kOptionObject},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"add", false, kAdd},
                                                       {"remove", false, kRemove},
                                                       {"clear", false, kClear},
                                                       {"enable", false, kEnable},
                                                       {"disable", false, kDisable},
                                                       {"merge", true, kMerge},
                                                       {"source-file", true, 'b'},
                                                       {"source-format", true, 'F'},
                                                       {"granularity", true, 'g'},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  BitmapRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  request.source.share = false;  // qemu-img takes -U, and takes the locks of a writer all the same
  bool adds = false;
  bool merges = false;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'b':
        request.merge_path = value;
        break;
      case 'F':
        request.merge_format = value;
        break;
      case 'g': {
        request.granularity = size_argument(call.output, "granularity", value);
        if (!request.granularity) return {1};
        break;
      }
      case kAdd:
        adds = true;
        [[fallthrough]];
      case kRemove:
      case kClear:
      case kEnable:
      case kDisable:
        request.steps.push_back({static_cast<BitmapAction>(id - kAdd), {}});
        break;
      default:
        merges = true;
        request.steps.push_back({BitmapAction::kMerge, value});
    }
  }
  if (parsed.operands.size() != 2) return image_failure(call.output, "Expecting filename and bitmap name");
  if (request.steps.empty())
    return image_failure(call.output, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
  if (request.granularity && !adds) return image_failure(call.output, "granularity only supported with --add");
  if (request.merge_format && !request.merge_path) return image_failure(call.output, "-F only supported with -b");
  if (request.merge_path && !merges)
    return image_failure(call.output, "Merge bitmap source file only supported with --merge");
  request.path = parsed.operands[0];
  request.bitmap = parsed.operands[1];
  if (auto refused = refused_for_space(call.output, request, request.path, run)) return *refused;
  return run(call.output, request);
}

}  // namespace varve::cli
