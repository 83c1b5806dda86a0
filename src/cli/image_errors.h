// Errors of the image module in qemu-img's words, for scripts that look at them. What QEMU has no words for keeps ours.
#pragma once

#include <string>

#include "base/result.h"
#include "cli/output.h"
#include "image/open.h"

namespace varve::cli {

// The reason alone, as QEMU's block layer gives it for a file: "Could not open 'a': No such file or directory",
// "Failed to get \"write\" lock\nIs another process using the image [a]?", "Image is not in qcow2 format".
// `doing`: "open" or "create".
std::string qemu_reason(const Error& error, const std::string& path, const char* doing);

// Called as qemu-img, the command gives QEMU's reason where QEMU refuses the image too, and else its own.
enum class Words : uint8_t { kOurs, kQemus };

// What QEMU would say with strerror(): the system's word where it gave one, else the one for the kind of error.
std::string errno_text(const Error& error);

// The reason of a failed open_image: one "Could not open backing file: " for every layer above it, then its own.
std::string qemu_open_reason(const image::OpenFailure& failure, Words words = Words::kOurs);

// Prints "PROGRAM: TEXT" and, where the command is called `varve`, the notes of `error`. Exit code 1.
struct ImageExit image_failure(Output& output, const std::string& text, const Error* error = nullptr);
struct ImageExit image_failure(Output& output, const Error& error);  // its message as it is

}  // namespace varve::cli
