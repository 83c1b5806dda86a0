#include "image/resize.h"

#include "image/raw_image.h"

namespace varve::image {

namespace {

// To this size of the file, which is the disk, perhaps behind a header.
Result<void> resize_plain(const OpenImage& image, uint64_t new_size, NewSpace new_space) {
  if (new_space == NewSpace::kMetadata)
    return make_error(ErrorKind::kUnsupported, "Unsupported preallocation mode: metadata");
  FileDevice& file = image.file();
  const uint64_t old_size = TRY(file.size());
  if (Result<void> resized = file.resize(new_size); !resized) {
    Error error = std::move(resized).error();
    if (error.sys_errno != 0)
      error.message = "Could not resize file: " + system_error(error.sys_errno, "").message.substr(2);
    return error;
  }
  TRY(fill_holes(file, old_size, new_size, new_space));
  return file.sync_all();
}

Result<void> resize_qcow2(qcow2::Image& image, FileDevice& file, uint64_t new_size, NewSpace new_space) {
  if (new_space == NewSpace::kSparse) return image.resize(new_size);
  FileDevice* data_file = image.header().has_data_file() ? dynamic_cast<FileDevice*>(&image.data()) : nullptr;
  FileDevice& grows = data_file != nullptr ? *data_file : file;
  const uint64_t old_end = TRY(grows.size());
  TRY(image.grow_preallocated(new_size));
  TRY(fill_holes(grows, old_end, TRY(grows.size()), new_space));
  return image.flush();
}

}  // namespace

Result<void> resize(const OpenImage& image, uint64_t new_size, NewSpace new_space) {
  switch (image.format()) {
    case Format::kRaw:
      return resize_plain(image, new_size, new_space);
    case Format::kLuks:
      return resize_plain(image, TRY(image.luks()->file_size_for(new_size)), new_space);
    case Format::kQcow2:
      return resize_qcow2(*image.qcow2(), image.file(), new_size, new_space);
  }
  return {};
}

}  // namespace varve::image
