#include "inspect/verify_images.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "check/check.h"
#include "inspect/safe_repair.h"

namespace varve {

namespace {

std::string one_line(const Error& error) {
  std::string text = error.message;
  for (const std::string& note : error.notes) text += "; " + note;
  return text;
}

bool is_hidden(const Error& error) {
  return error.kind == ErrorKind::kInUse || error.kind == ErrorKind::kPermission;
}

}  // namespace

Finding ImageExaminer::finding(FindingKind kind, Severity severity, const std::string& path,
                               std::string message) const {
  Finding finding;
  finding.kind = kind;
  finding.severity = severity;
  finding.domain = domain_;
  finding.snapshot = snapshot_;
  finding.disks = {target_};
  finding.path = path;
  finding.message = fmt::format("disk {}: {}", target_, std::move(message));
  return finding;
}

void ImageExaminer::report(FindingKind kind, Severity severity, const std::string& path, std::string message,
                           std::string remedy, bool is_repairable) {
  Finding found = finding(kind, severity, path, std::move(message));
  found.remedy = std::move(remedy);
  found.is_repairable = is_repairable;
  findings_.push_back(std::move(found));
}

void ImageExaminer::report_unreadable(const std::string& path, const Error& error) {
  if (is_hidden(error)) {
    report(FindingKind::kNotExamined, Severity::kUnknown, path, one_line(error),
           "look again when nobody has it in use");
    return;
  }
  report(FindingKind::kUnreadableImage, Severity::kError, path, one_line(error),
         fmt::format("`varve image check -f qcow2 '{}'` says more", host_.layout().shown(path)));
}

const ExaminedImage* ImageExaminer::look_at(const Disk& disk, const std::string& snapshot) {
  if (!disk.is_local_file() || disk.source.empty()) return nullptr;
  const auto host_path = host_.layout().resolve(disk.source);
  const auto [entry, is_new] = images_.try_emplace({host_path ? *host_path : disk.source, disk.format});
  ExaminedImage& image = entry->second;
  if (!is_new) return &image;
  target_ = disk.target;
  snapshot_ = snapshot;
  image.path = disk.source;
  image.exists = host_path.has_value();
  if (!host_path) {
    report(FindingKind::kMissingFile, Severity::kError, disk.source,
           fmt::format("its image {} is not there", host_.layout().shown(disk.source)),
           host_path.error().notes.empty() ? "bring it back, or say with `varve vm define` where it is now"
                                           : host_path.error().notes.front());
    return &image;
  }
  examine(disk, *host_path, image);
  return &image;
}

void ImageExaminer::examine(const Disk& disk, const std::string& host_path, ExaminedImage& image) {
  if (disk.format.empty()) {
    report(FindingKind::kNoFormat, Severity::kWarning, disk.source,
           fmt::format("the definition does not say which format {} has, and guessing is unsafe",
                       host_.layout().shown(disk.source)),
           "put <driver name='qemu' type='qcow2'/> (or the format it has) into the <disk> element, and define it again "
           "with `varve vm define`");
    return;
  }
  if (disk.format != "qcow2") {
    image.is_known = true;  // nothing else can be in it
    checked_.insert(host_path);
    return;
  }
  auto file = FileDevice::open(host_path, Access::kReadOnly, LockRequest::format_reader());
  if (!file) return report_unreadable(disk.source, file.error());
  const std::shared_ptr<FileDevice> shared = std::move(*file);
  if (!check(disk.source, *shared)) return;
  checked_.insert(host_path);
  const auto opened = qcow2::Image::open(shared, {.writable = false});
  if (!opened) return report_unreadable(disk.source, opened.error());
  if (const auto size = (*opened)->size()) image.virtual_size = *size;
  image.points = (*opened)->snapshots();
  for (const qcow2::Snapshot& point : image.points) {
    if (!point.fault) continue;
    report(
        FindingKind::kDamagedPoint, Severity::kError, disk.source,
        fmt::format("the image's entry of snapshot '{}' is damaged: {}", point.name, point.fault->what),
        fmt::format("nothing can bring it back; where it is not needed, `varve image check -f qcow2 -r all '{}'` mends "
                    "the rest, after a copy",
                    host_.layout().shown(disk.source)));
    findings_.back().snapshot = point.name;
  }
  image.is_known = true;
  examine_chain(disk.source, (*opened)->header());
}

bool ImageExaminer::check(const std::string& path, FileDevice& file) {
  const std::string shown = host_.layout().shown(path);
  if (const auto layout = check::open_layout(file); !layout) {
    report_unreadable(path, Error(layout.error()).context(shown));
    return false;
  }
  std::string first;
  const auto keep_first = [&first](const std::string& line) {
    if (first.empty()) first = line;
  };
  check::CheckOptions options;
  if (progress_) options.progress = [&](uint64_t done, uint64_t total) { progress_(path, done, total); };
  const auto result = check::check_image(file, options, {.line = keep_first, .error = keep_first});
  if (!result) {
    report_unreadable(path, Error(result.error()).context(shown));
    return false;
  }
  const check::Tally& tally = result->tally;
  if (tally.error != 0 || tally.check_errors != 0) {
    report(FindingKind::kUnreadableImage, Severity::kError, path,
           fmt::format("the metadata of {} could not be looked at to its end{}{}", shown, tally.error != 0 ? ": " : "",
                       tally.error != 0 ? std::strerror(tally.error) : ""),
           fmt::format("`varve image check -f qcow2 '{}'` says more", shown));
    return tally.error == 0;
  }
  if (tally.corruptions == 0 && tally.leaks == 0) return true;
  const auto repair = tally.corruptions != 0 ? check::Repair::kAll : check::Repair::kLeaks;
  const auto safe = rehearse_safe_repair(file.name(), repair);
  const bool is_repairable = safe && safe->has_value();
  const std::string leaks = fmt::format("{} leaked cluster{}", tally.leaks, tally.leaks == 1 ? "" : "s");
  if (tally.corruptions == 0) {
    report(FindingKind::kImageLeaks, Severity::kWarning, path,
           fmt::format("{} has {}: space that nothing uses", shown, leaks),
           is_repairable ? fmt::format("`varve image check -f qcow2 -r leaks '{}'` gives it back", shown)
                         : "leave it: a damaged snapshot may need it",
           is_repairable);
    return true;
  }
  report(
      FindingKind::kImageErrors, Severity::kError, path,
      fmt::format("the metadata of {} has {} error{}{} (the first: {})", shown, tally.corruptions,
                  tally.corruptions == 1 ? "" : "s", tally.leaks == 0 ? "" : " and " + leaks, first),
      is_repairable
          ? fmt::format("`varve image check -f qcow2 -r all '{}'` mends all of it, and gives nothing up", shown)
          : fmt::format("keep a copy of the file before anything else: `varve image check -f qcow2 -r all '{}'` makes "
                        "the image sound by giving up what is broken",
                        shown),
      is_repairable);
  return true;
}

void ImageExaminer::examine_chain(const std::string& path, const qcow2::Header& header) {
  const BackingFiles chain = backing_files(host_.layout(), path, header);
  std::string above = path;
  for (const BackingFile& file : chain.files) {
    const bool is_unreadable = chain.kind == ChainProblem::kUnreadable && &file == &chain.files.back();
    const std::string shown = host_.layout().shown(above);
    if (file.recorded.starts_with('/')) {
      const std::string relative =
          std::filesystem::path(file.path).lexically_relative(std::filesystem::path(above).parent_path()).string();
      report(FindingKind::kAbsoluteLink, Severity::kNote, above,
             fmt::format("{} names its backing file by its absolute path, {}: the link breaks when they move", shown,
                         file.recorded),
             file.format.empty() ? ""
                                 : fmt::format("`varve image rebase -u -f qcow2 -F {} -b '{}' '{}'` makes it relative",
                                               file.format, relative, shown));
    }
    if (file.exists && file.format == "qcow2" && !is_unreadable) examine_backing_file(file.path);
    above = file.path;
  }
  if (chain.kind == ChainProblem::kNone) return;
  // The image whose link it is.
  const std::string link = chain.files.size() < 2 ? path : chain.files[chain.files.size() - 2].path;
  switch (chain.kind) {
    case ChainProblem::kNone:
      return;
    case ChainProblem::kNoFormat:
      return report(FindingKind::kNoFormat, Severity::kWarning, link, chain.problem,
                    "record the format that the file has, as the message says; never the one that it seems to have");
    case ChainProblem::kUnreadable:
      if (chain.is_hidden) {
        return report(FindingKind::kNotExamined, Severity::kUnknown, chain.files.back().path, chain.problem,
                      "look again when nobody has it in use");
      }
      return report(FindingKind::kBrokenChain, Severity::kError, chain.files.back().path, chain.problem,
                    "bring the file back from a copy");
    case ChainProblem::kMissing:
      return report(
          FindingKind::kBrokenChain, Severity::kError, link, chain.problem,
          fmt::format("bring it back; or, where it is elsewhere now: `varve image rebase -u -f qcow2 -F FORMAT "
                      "-b PLACE '{}'`",
                      host_.layout().shown(link)));
    case ChainProblem::kNoPath:
    case ChainProblem::kCircle:
      return report(FindingKind::kBrokenChain, Severity::kError, link, chain.problem,
                    "`varve image rebase -u` names another backing file");
  }
}

void ImageExaminer::examine_backing_file(const std::string& path) {
  const auto host_path = host_.layout().resolve(path);
  if (!host_path || !checked_.insert(*host_path).second) return;
  const auto file = FileDevice::open(*host_path, Access::kReadOnly, LockRequest::backing_reader());
  if (!file) return report_unreadable(path, file.error());
  check(path, **file);
}

}  // namespace varve
