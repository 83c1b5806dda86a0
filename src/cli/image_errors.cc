#include "cli/image_errors.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "check/check.h"
#include "cli/image_arguments.h"
#include "image/backing_name.h"
#include "image/format.h"
#include "io/file_device.h"

namespace varve::cli {

namespace {

// Which of the two kinds of locks, and which permission, stands in our message (io/image_lock.cc).
std::string qemu_lock_reason(const Error& error, const std::string& path) {
  const bool is_used = error.message.find("does not share the ") != std::string::npos;
  std::string permission = "write";
  for (const char* name : {"consistent read", "write unchanged", "resize"}) {
    if (error.message.find(fmt::format("the {} lock", name)) != std::string::npos) permission = name;
  }
  return fmt::format("Failed to get {}\"{}\" lock\nIs another process using the image [{}]?", is_used ? "" : "shared ",
                     permission, path);
}

bool is_no_qcow2(const Error& error, const std::string& path) {
  return error.message == fmt::format("'{}' is not a qcow2 image", path);
}

// The scanner of a check reads the file as QEMU does and says what QEMU says. Nothing where it finds nothing wrong:
// then we are stricter than QEMU, and only we can say why.
std::optional<std::string> verdict_of_qemu(const image::OpenFailure& failure) {
  const ErrorKind kind = failure.cause->kind;
  if (failure.cause->sys_errno != 0 || (kind != ErrorKind::kCorrupt && kind != ErrorKind::kUnsupported)) return {};
  const auto file = FileDevice::open(failure.path, Access::kReadOnly, LockRequest::none());
  if (!file) return {};
  // An image that was not called qcow2 and does not look like it was refused for what it is instead.
  const bool was_called_qcow2 = is_no_qcow2(*failure.cause, failure.path);
  if (const auto looks = image::looks_like_qcow2(**file); !was_called_qcow2 && (!looks || !*looks)) return {};
  const Result<check::Layout> layout = check::open_layout_for_use(**file);
  if (layout || layout.error().sys_errno != 0) return {};
  return layout.error().message;
}

}  // namespace

std::string qemu_reason(const Error& error, const std::string& path, const char* doing) {
  if (error.kind == ErrorKind::kInUse) return qemu_lock_reason(error, path);
  // A part of the file that could not be read is named as QEMU names it (image/open.cc).
  if (error.sys_errno != 0 && error.message.starts_with("Could not read "))
    return error.message.substr(0, error.message.find(": ") + 2) + std::strerror(error.sys_errno);
  if (error.sys_errno != 0) return fmt::format("Could not {} '{}': {}", doing, path, std::strerror(error.sys_errno));
  if (is_no_qcow2(error, path)) return "Image is not in qcow2 format";
  // Ours begin with the file's name, which the caller says anyhow.
  const std::string prefix = path + ": ";
  return error.message.starts_with(prefix) ? error.message.substr(prefix.size()) : error.message;
}

std::string errno_text(const Error& error) {
  if (error.sys_errno != 0) return std::strerror(error.sys_errno);
  switch (error.kind) {
    case ErrorKind::kInvalidArgument:
      return std::strerror(EINVAL);
    case ErrorKind::kUnsupported:
      return std::strerror(ENOTSUP);
    case ErrorKind::kNoSpace:
      return std::strerror(ENOSPC);
    case ErrorKind::kPermission:
      return std::strerror(EPERM);
    default:
      return std::strerror(EIO);
  }
}

std::string qemu_open_reason(const image::OpenFailure& failure, Words words) {
  std::string text;
  for (size_t i = 0; i < failure.layer; ++i) text += "Could not open backing file: ";
  if (words == Words::kQemus) {
    if (const auto verdict = verdict_of_qemu(failure)) return text + *verdict;
  }
  return text + qemu_reason(*failure.cause, failure.path, "open");
}

ImageExit image_failure(Output& output, const std::string& text, const Error* error) {
  if (output.program() != "varve") {
    output.error(text);
    return {1};
  }
  output.error(visible_lines(text));
  if (error != nullptr) {
    for (const std::string& note : error->notes) output.note(fmt::format("  {}\n", visible_lines(note)));
  }
  return {1};
}

ImageExit image_failure(Output& output, const Error& error) {
  return image_failure(output, error.message, &error);
}

}  // namespace varve::cli
