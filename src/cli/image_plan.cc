#include "cli/image_plan.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/paths.h"
#include "base/units.h"
#include "cli/image_errors.h"
#include "cli/plan_text.h"
#include "io/free_space.h"

namespace varve::cli {

ImageExit print_image_plan(Output& output, const DryRun& dry_run, const Plan& plan) {
  print_plan(output, dry_run.json, plan);
  return {0};
}

std::string bytes_text(uint64_t bytes) {
  return bytes < 1000 ? fmt::format("{} bytes", bytes) : fmt::format("{} ({} bytes)", format_size(bytes), bytes);
}

Plan begin_image_plan(std::string title, const image::OpenImage& image) {
  Plan plan{.title = std::move(title), .checks = {}, .steps = {}, .notes = {}};
  plan.checks.push_back(
      fmt::format("{} is a {} image that nobody uses, and can be written", image.path(), name_of(image.format())));
  return plan;
}

void add_file_steps(Plan& plan, const FileDevice& file) {
  const RehearsedChanges changes = file.rehearsed();
  if (changes.written_bytes != 0)
    plan.steps.push_back(fmt::format("write {} into {}", bytes_text(changes.written_bytes), file.name()));
  if (changes.size_after != changes.size_before)
    plan.steps.push_back(fmt::format("the file {} {}: from {} to {} bytes", file.name(),
                                     changes.size_after > changes.size_before ? "grows" : "shrinks",
                                     changes.size_before, changes.size_after));
}

void add_file_steps(Plan& plan, const image::OpenImage& image) {
  add_file_steps(plan, image.file());
  FileDevice& data = image.data_file();
  if (&data != &image.file() && data.is_rehearsal()) add_file_steps(plan, data);
}

Result<void> check_space(FileDevice& file, uint64_t bytes) {
  SpaceNeeds needs;
  needs.add(file.name(), bytes);
  if (needs.enough() || file.is_block_device()) return {};
  SpaceNeeds least;
  least.add(file, bytes);
  return least.check();
}

Result<void> check_space(const image::OpenImage& rehearsed) {
  TRY(check_space(rehearsed.file(), rehearsed.file().rehearsed().most_new_bytes));
  FileDevice& data = rehearsed.data_file();
  if (&data == &rehearsed.file() || !data.is_rehearsal()) return {};
  return check_space(data, data.rehearsed().most_new_bytes);
}

ImageExit space_failure(Output& output, const Error& error) {
  ImageExit end = image_failure(output, error);
  end.lacks_space = std::make_shared<const Error>(error);
  return end;
}

bool may_lack_space(const std::string& path) {
  constexpr uint64_t kEnough = uint64_t{1} << 30;  // the metadata of a disk of some terabytes
  const auto space = free_space(path.starts_with("file:") ? path.substr(5) : path);
  return space && space->available < kEnough;
}

Result<void> check_target(Plan& plan, const std::string& path) {
  const std::string file = path.starts_with("file:") ? path.substr(5) : path;
  struct stat status = {};
  if (::stat(file.c_str(), &status) == 0) {
    TRY(FileDevice::open(file, Access::kRehearse, LockRequest::format_writer()));
    plan.checks.push_back(fmt::format("{} is there, nobody uses it, and it can be written", path));
    if (S_ISREG(status.st_mode))
      plan.notes.push_back(fmt::format("what {} holds now, {}, is overwritten", path,
                                       bytes_text(static_cast<uint64_t>(status.st_size))));
    return {};
  }
  if (errno != ENOENT) return system_error(errno, fmt::format("cannot create '{}'", path), path);
  if (::faccessat(AT_FDCWD, directory_of(file).c_str(), W_OK | X_OK, AT_EACCESS) != 0)
    return system_error(errno, fmt::format("cannot create '{}'", path), path);
  plan.checks.push_back(fmt::format("{} is not there, and its directory can be written", path));
  return {};
}

}  // namespace varve::cli
