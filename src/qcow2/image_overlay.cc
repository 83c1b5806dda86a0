// What makes an image an overlay: the backing file that its header names, and emptying it once the backing file holds
// all that it held.
#include <fmt/format.h>

#include <cerrno>

#include "qcow2/image.h"
#include "qcow2/image_state.h"

namespace varve::qcow2 {
namespace {

Error read_only(const std::string& name) {
  return make_error(ErrorKind::kPermission, fmt::format("{}: the image is open for reading only", name));
}

}  // namespace

Result<void> Image::change_backing_name(const std::optional<std::string>& file,
                                        const std::optional<std::string>& format) {
  if (!state_->writer) return read_only(name());
  if (file && state_->header.has_raw_data_file()) {
    Error error = make_error(ErrorKind::kInvalidArgument,
                             name() + ": the data file is a raw image of its own, below which nothing shows");
    error.sys_errno = EINVAL;
    return error;
  }
  Result<void> updated = update_header([&](Header& header) {
    header.backing_file = file;
    header.backing_format = format;
  });
  if (!updated && updated.error().kind == ErrorKind::kInvalidArgument) updated.error().kind = ErrorKind::kNoSpace;
  return updated;
}

Result<void> Image::make_empty() {
  if (!state_->writer) return read_only(name());
  TRY(flush());
  const std::unique_lock io(state_->io_lock);
  const std::lock_guard lock(state_->metadata_lock);
  Result<void> emptied = state_->writer->unmap_everything();
  if (!emptied) {
    state_->writer->give_up();  // L1 entries in memory are gone already
    return emptied;
  }
  TRY(state_->writer->write_back());
  TRY(state_->writer->release_freed());
  TRY(state_->file->flush());  // refcounts of what is free | the end of the file that counts it
  return state_->writer->trim_file();
}

}  // namespace varve::qcow2
