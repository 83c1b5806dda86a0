// What QEMU 7.2 calls its drivers: the names that a header may record as a backing format, and the answers to whoever
// wants an image of a format that we do not make. (`qemu-img --help` lists them as "Supported formats".)
#pragma once

#include <string>
#include <string_view>

namespace varve::cli {

// Whether QEMU takes the name for a driver's, whatever that driver may do. Ours are among them.
bool is_qemu_driver(std::string_view name);

// In QEMU's words, why no image of the format is made, or amended. For what only QEMU makes, as for a name that nobody
// knows: that there is no such format.
std::string not_created_reason(const std::string& format);
std::string not_amended_reason(const std::string& format);
// The same where the image's name says that it is to be made by a protocol that makes none, or that we don't know.
std::string not_created_by_reason(const std::string& protocol);

}  // namespace varve::cli
