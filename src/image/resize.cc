#include "image/resize.h"

#include <algorithm>

#include "base/checked.h"
#include "image/raw_image.h"

namespace varve::image {

namespace {

constexpr uint64_t kBufferBytes = uint64_t{1} << 20;

Result<void> write_zero_bytes(BlockDevice& device, uint64_t from, uint64_t end) {
  const std::vector<std::byte> zeroes(kBufferBytes);
  for (uint64_t at = from; at < end; at += kBufferBytes)
    TRY(device.write_at(at, std::span(zeroes).first(std::min(kBufferBytes, end - at))));
  return {};
}

Result<void> resize_raw(const OpenImage& image, uint64_t new_size, NewSpace new_space) {
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
  if (new_space == NewSpace::kReserved) TRY(file.write_zeroes(old_size, new_size - old_size, ZeroMode::kKeepAllocated));
  if (new_space == NewSpace::kWritten) TRY(write_zero_bytes(file, old_size, new_size));
  return file.sync_all();
}

Result<void> resize_qcow2(qcow2::Image& image, uint64_t new_size, NewSpace new_space) {
  if (new_space == NewSpace::kMetadata) {
    return make_error(ErrorKind::kUnsupported,
                      "--preallocation=metadata is not supported by this version of Varve; falloc and full are");
  }
  const uint64_t old_size = TRY(image.size());
  TRY(image.resize(new_size));
  if (new_space == NewSpace::kSparse) return {};
  TRY(write_zero_bytes(image, old_size, new_size));
  return image.flush();
}

}  // namespace

Result<void> resize(const OpenImage& image, uint64_t new_size, NewSpace new_space) {
  if (image.qcow2() == nullptr) return resize_raw(image, new_size, new_space);
  return resize_qcow2(*image.qcow2(), new_size, new_space);
}

}  // namespace varve::image
