#include "operation/image_repair.h"

#include <fmt/format.h>

#include "check/check.h"
#include "inspect/safe_repair.h"

namespace varve {

Result<ImageRepair> ImageRepair::open(const Layout& layout, const std::string& root_path, check::Repair repair) {
  ImageRepair result;
  result.path_ = root_path;
  result.shown_path_ = layout.shown(root_path);
  result.repair_ = repair;
  const std::string host_path = TRY(layout.resolve(root_path));
  result.file_ = TRY(FileDevice::open(host_path, Access::kReadWrite, LockRequest::format_writer()));
  const auto new_bytes = TRY(rehearse_safe_repair(host_path, repair));
  if (!new_bytes) {  // it may have changed since it was looked at
    return make_error(ErrorKind::kRefused,
                      fmt::format("{} can't be mended without giving up some of it", result.shown_path_));
  }
  result.new_bytes_ = *new_bytes;
  return result;
}

std::string ImageRepair::describe() const {
  return repair_ == check::Repair::kLeaks ? fmt::format("give back the leaked clusters of {}", shown_path_)
                                          : fmt::format("mend the metadata of {}", shown_path_);
}

Result<void> ImageRepair::run() {
  const auto ignore = [](const std::string&) {};
  const check::Report report{.line = ignore, .error = ignore};
  TRY(check::check_image(*file_, {.repair = repair_}, report));
  const check::CheckResult after = TRY(check::check_image(*file_, {}, report));
  TRY(file_->flush());
  const check::Tally& tally = after.tally;
  if (tally.error == 0 && tally.check_errors == 0 && tally.corruptions == 0 && tally.leaks == 0) return {};
  return make_error(ErrorKind::kCorrupt, fmt::format("the metadata of {} could not be mended", shown_path_))
      .with_note(fmt::format("`varve image check -f qcow2 '{}'` says what is wrong with it", shown_path_));
}

}  // namespace varve
