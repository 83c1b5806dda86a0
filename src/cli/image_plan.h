// What the changing verbs of `varve image` do with --dry-run. Where it can be done in memory, a verb opens its image to
// rehearse it (image::OpenOptions::rehearse), does its work as ever, and tells what would have become of the file;
// so what it refuses is what it would refuse. Verbs that copy a guest's data count it instead.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/image_arguments.h"
#include "image/open.h"
#include "operation/plan.h"

namespace varve::cli {

ImageExit print_image_plan(Output& output, const DryRun& dry_run, const Plan& plan);

// "128 KiB (131072 bytes)".
std::string bytes_text(uint64_t bytes);

// A plan's beginning: its title, and that the image could be opened as for the work itself.
Plan begin_image_plan(std::string title, const image::OpenImage& image);
// How much would be written into the file, and what size it would get. Nothing where it would not be written to.
void add_file_steps(Plan& plan, const FileDevice& file);
// The same for all files of the image that may be written to.
void add_file_steps(Plan& plan, const image::OpenImage& image);

// Refuses (kNoSpace) where the file's file system has less than `bytes` left. A file that has reserved blocks may take
// them instead. What is refused could not have succeeded.
Result<void> check_space(FileDevice& file, uint64_t bytes);
// The same by what was rehearsed.
Result<void> check_space(const image::OpenImage& rehearsed);

// Ends a rehearsal whose check_space() failed.
ImageExit space_failure(Output& output, const Error& error);

// Whether the file system has so little left that a change of an image's metadata might not find its space.
bool may_lack_space(const std::string& path);

// Before a verb writes: where space is short, rehearses it in memory, and gives its end if the space does not suffice.
// Nothing for who calls the command qemu-img.
template <typename Request>
std::optional<ImageExit> refused_for_space(Output& output, const Request& request, const std::string& path,
                                           ImageExit (*work)(Output&, const Request&)) {
  if (request.source.as_qemu_img || request.source.dry_run.wanted || !may_lack_space(path)) return {};
  Request rehearsal = request;
  rehearsal.source.dry_run.wanted = true;
  rehearsal.source.diagnostics = nullptr;
  Output nowhere = Output::nowhere(output.program());
  const ImageExit end = work(nowhere, rehearsal);
  if (!end.lacks_space) return {};  // whatever else is wrong, the work itself finds too
  return space_failure(output, *end.lacks_space);
}
// Whether a new image could be made at `path`: its directory can be written to, or what is there be overwritten, which
// nobody uses. Adds the check, and a note where something is lost. Changes nothing.
Result<void> check_target(Plan& plan, const std::string& path);

}  // namespace varve::cli
