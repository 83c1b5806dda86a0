// `image check`: what is wrong with the metadata of a qcow2 image, and its repair. Opens the one file: backing files
// and an external data file are not needed.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "check/check.h"
#include "check/deep.h"
#include "cli/image_check_arguments.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_plan.h"
#include "cli/qemu_json.h"
#include "image/format.h"
#include "io/file_device.h"

namespace varve::cli {

namespace {

constexpr int kExitNotSupported = 63;

// Lines by the thousand are written in large pieces.
class Lines {
 public:
  explicit Lines(Output& output) : output_(output) {}
  ~Lines() { flush(); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  check::Report report() {
    return {.line = [this](const std::string& text) { add(text); },
            .error = [this](const std::string& text) { add(fmt::format("{}: {}", output_.program(), text)); }};
  }
  void flush() {
    output_.diagnostics(text_);
    text_.clear();
  }

 private:
  void add(const std::string& line) {
    text_ += line;
    text_ += '\n';
    if (text_.size() >= size_t{1} << 16) flush();
  }
  Output& output_;
  std::string text_;
};

// Where a message follows that QEMU prints while it opens an image.
void warn_of_untrusted_bitmaps(Output& output, const check::Layout& layout) {
  if (!layout.has_untrusted_bitmaps) return;
  output.error(layout.version < 3
                   ? "warning: This qcow2 v2 image contains bitmaps, but they may have been modified by a program "
                     "without persistent bitmap support; so now they must all be considered inconsistent"
                   : "warning: a program lacking bitmap support modified this file, so all bitmaps are now considered "
                     "inconsistent");
  output.diagnostics("Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.");
}

void print_human(Output& output, const check::CheckResult& result) {
  const check::Tally& tally = result.tally;
  if (tally.corruptions == 0 && tally.leaks == 0 && tally.check_errors == 0) {
    output.print("No errors were found on the image.\n");
  }
  if (tally.corruptions != 0) {
    output.print(
        fmt::format("\n{} errors were found on the image.\nData may be corrupted, or further writes to the "
                    "image may corrupt it.\n",
                    tally.corruptions));
  }
  if (tally.leaks != 0) {
    output.print(
        fmt::format("\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no "
                    "harm to data.\n",
                    tally.leaks));
  }
  if (tally.check_errors != 0) {
    output.print(fmt::format("\n{} internal errors have occurred during the check.\n", tally.check_errors));
  }
  const check::Allocation& a = result.allocation;
  const auto percent = [](uint64_t part, uint64_t whole) {
    return static_cast<double>(part) * 100.0 / static_cast<double>(whole);
  };
  if (a.total != 0 && a.allocated != 0) {
    output.print(fmt::format("{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n",
                             a.allocated, a.total, percent(a.allocated, a.total), percent(a.fragmented, a.allocated),
                             percent(a.compressed, a.allocated)));
  }
  if (a.image_end != 0) output.print(fmt::format("Image end offset: {}\n", a.image_end));
}

void print_json(Output& output, const std::string& name, const check::CheckResult& result) {
  // QEMU's order is that of its hash table.
  nlohmann::ordered_json json;
  const auto put = [&](const char* key, auto value) {
    if (value != 0) json[key] = value;
  };
  const check::Tally& tally = result.tally;
  const check::Allocation& a = result.allocation;
  put("image-end-offset", a.image_end);
  put("compressed-clusters", a.compressed);
  put("total-clusters", a.total);
  put("corruptions", tally.corruptions);
  put("corruptions-fixed", tally.corruptions_fixed);
  json["check-errors"] = tally.check_errors;
  put("leaks", tally.leaks);
  put("leaks-fixed", tally.leaks_fixed);
  put("allocated-clusters", a.allocated);
  json["filename"] = name;
  json["format"] = "qcow2";
  put("fragmented-clusters", a.fragmented);
  output.print(qemu_json(json));
}

struct OpenCheck {
  std::shared_ptr<FileDevice> file;
  std::shared_ptr<BlockDevice> storage;  // `file`, with what filters it
  image::Format format = image::Format::kRaw;
};

Result<OpenCheck> open_file(const CheckArguments& arguments) {
  const bool writes = arguments.repair != check::Repair::kNone;
  const Access access = !writes                           ? Access::kReadOnly
                        : arguments.source.dry_run.wanted ? Access::kRehearse
                                                          : Access::kReadWrite;
  OpenCheck open;
  open.file = TRY(FileDevice::open(arguments.path, access, LockRequest::none()));
  open.storage = open.file;
  for (const DebugOptions& filter : arguments.filters.on_file)
    open.storage = std::make_shared<DebugDevice>(open.storage, filter);
  open.format = arguments.format ? *arguments.format : TRY(image::probe_format(*open.storage));
  if (!arguments.share && open.format == image::Format::kQcow2) {
    TRY(open.file->relock(writes ? LockRequest::format_writer() : LockRequest::format_reader()));
  }
  return open;
}

Result<check::CheckResult> check_once(Output& output, BlockDevice& file, const CheckArguments& arguments,
                                      check::Repair repair) {
  Lines lines(output);
  const check::Report report = lines.report();
  ProgressBar bar("check", arguments.progress);
  check::CheckResult result = TRY(check::check_image(
      file, {.repair = repair, .progress = [&](uint64_t done, uint64_t total) { bar.update(done, total); }}, report));
  if (arguments.deep && repair == check::Repair::kNone && result.tally.error == 0) {
    TRY(check::check_deep(file, report, result.tally));
  }
  return result;
}

Plan plan_of(const CheckArguments& arguments, const FileDevice& file, const check::RepairSummary& repair) {
  Plan plan{.title = fmt::format("repair {}", arguments.name), .checks = {}, .steps = {}, .notes = {}};
  plan.checks.push_back(fmt::format("{} is a qcow2 image that nobody uses, and can be written", arguments.name));
  const auto step = [&](bool wanted, const std::string& text) {
    if (wanted) plan.steps.push_back(text);
  };
  step(repair.file_size.has_value(), fmt::format("let the file grow to {} bytes", repair.file_size.value_or(0)));
  step(repair.structure_bytes != 0,
       fmt::format("write a new refcount structure of {}, and point to it", bytes_text(repair.structure_bytes)));
  step(repair.refcounts_raised != 0, fmt::format("raise the refcounts of {} clusters", repair.refcounts_raised));
  step(repair.snapshot_table, "write the snapshot table anew");
  step(repair.entries_zeroed != 0, fmt::format("zero {} table entries that lead nowhere", repair.entries_zeroed));
  step(repair.refcounts_lowered != 0, fmt::format("lower the refcounts of {} clusters", repair.refcounts_lowered));
  step(repair.copied_flags, "correct COPIED flags");
  step(repair.clears_bits, "take back that the image is dirty or corrupt");
  add_file_steps(plan, file);
  if (plan.steps.empty()) plan.notes.push_back("there is nothing to repair");
  return plan;
}

// Repairs in memory, and looks at what has become of the image.
ImageExit rehearse(Output& output, const CheckArguments& arguments, const OpenCheck& open) {
  FileDevice& file = *open.file;
  BlockDevice& storage = *open.storage;
  check::RepairSummary repair;
  std::string last_line;
  const check::Report silent{.line = [&](const std::string& text) { last_line = text; },
                             .error = [&](const std::string& text) { last_line = text; }};
  const auto failed = [&](int error, const std::string& why) {
    return image_failure(output, fmt::format("Check failed: {}", error != 0 ? std::strerror(error) : why));
  };
  Result<check::CheckResult> result = check::check_image(
      storage,
      {.repair = arguments.repair, .progress = {}, .planned = [&](const check::RepairSummary& s) { repair = s; }},
      silent);
  if (!result) return failed(result.error().sys_errno, result.error().message);
  if (result->tally.error != 0 || result->tally.check_errors != 0) return failed(result->tally.error, last_line);
  if (const auto enough = check_space(file, file.rehearsed().most_new_bytes); !enough)
    return space_failure(output, enough.error());
  Plan plan = plan_of(arguments, file, repair);
  result = check::check_image(storage, {}, silent);
  if (!result) return failed(result.error().sys_errno, result.error().message);
  const check::Tally& left = result->tally;
  if (left.error != 0 || left.check_errors != 0) return failed(left.error, last_line);
  if (left.corruptions != 0 || left.leaks != 0)
    plan.notes.push_back(fmt::format("{} errors and {} leaked clusters would be left", left.corruptions, left.leaks));
  print_image_plan(output, arguments.source.dry_run, plan);
  return {left.corruptions != 0 ? 2 : left.leaks != 0 ? 3 : 0};
}

ImageExit run(Output& output, const CheckArguments& arguments) {
  const bool json = arguments.json;
  const auto cannot_open = [&](const std::string& reason, const Error* error = nullptr) {
    return image_failure(output, fmt::format("Could not open '{}': {}", arguments.name, reason), error);
  };
  if (arguments.share && arguments.repair != check::Repair::kNone) {
    return cannot_open("force-share=on can only be used with read-only images");
  }
  Result<OpenCheck> open = open_file(arguments);
  if (!open) return cannot_open(qemu_reason(open.error(), arguments.path, "open"), &open.error());
  if (open->format == image::Format::kLuks) {  // opened all the same, as QEMU does: its key may be missing
    const auto opened = open_source(arguments.name, arguments.source, {.use = image::Use::kRead});
    if (!opened) return image_failure(output, opened.error());
  }
  if (open->format != image::Format::kQcow2 || !arguments.filters.on_disk.empty()) {
    output.error("This image format does not support checks");
    return {kExitNotSupported};
  }
  BlockDevice& file = *open->storage;
  const Result<check::Layout> layout = check::open_layout(file);
  if (!layout) return cannot_open(qemu_reason(layout.error(), arguments.path, "read"), &layout.error());
  warn_of_untrusted_bitmaps(output, *layout);

  const auto failed = [&](int error) {
    output.error(error != 0 ? fmt::format("Check failed: {}", std::strerror(error)) : "Check failed");
    return ImageExit{1};
  };
  if (open->file->is_rehearsal()) return rehearse(output, arguments, *open);
  Result<check::CheckResult> result = check_once(output, file, arguments, arguments.repair);
  if (!result) return failed(result.error().sys_errno != 0 ? result.error().sys_errno : EIO);
  const check::Tally first = result->tally;
  const bool repaired = first.error == 0 && (first.corruptions_fixed != 0 || first.leaks_fixed != 0);
  if (repaired || (arguments.deep && arguments.repair != check::Repair::kNone && first.error == 0)) {
    if (repaired && !json && !arguments.quiet) {
      output.print(
          fmt::format("The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    "
                      "{} corruptions\n\nDouble checking the fixed image now...\n",
                      first.leaks_fixed, first.corruptions_fixed));
    }
    result = check_once(output, file, arguments, check::Repair::kNone);
    if (!result) return failed(result.error().sys_errno != 0 ? result.error().sys_errno : EIO);
    result->tally.corruptions_fixed = first.corruptions_fixed;
    result->tally.leaks_fixed = first.leaks_fixed;
  }
  const check::Tally& tally = result->tally;
  if (tally.error == 0 && !arguments.quiet) {
    if (json) {
      print_json(output, arguments.name, *result);
    } else {
      print_human(output, *result);
    }
  }
  if (tally.error != 0 || tally.check_errors != 0) return failed(tally.error);
  return {tally.corruptions != 0 ? 2 : tally.leaks != 0 ? 3 : 0};
}

}  // namespace

ImageExit image_check(const ImageCall& call) {
  ParsedCheck parsed = parse_check_arguments(call);
  if (parsed.ended) return *parsed.ended;
  CheckArguments& arguments = parsed.arguments;
  arguments.json = arguments.json || call.json;
  if (arguments.repair != check::Repair::kNone) {
    if (auto refused = refused_for_space(call.output, arguments, arguments.path, run)) return *refused;
  }
  return run(call.output, arguments);
}

}  // namespace varve::cli
