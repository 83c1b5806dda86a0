// Names of domains and snapshots. They are also file names, so what a file system, a terminal or a path could trip over
// is refused; everything else (spaces, umlauts, "a--b") is a name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace varve {

// A file name has 255 bytes. libvirt replaces NAME.xml by way of NAME.xml.new, and fails on a name that leaves no room
// for that, even where the file is there already.
inline constexpr size_t kMaxNameSize = 255 - 8;

// For a name that is about to be given. kInvalidArgument, with the reason in the message: empty, "/", control
// characters or NUL, invalid UTF-8, a leading dot, longer than kMaxNameSize bytes.
Result<void> check_domain_name(std::string_view name);
Result<void> check_snapshot_name(std::string_view name);

// For a name that others gave: whether NAME.xml is one file in the directory where it should be. libvirt lets in what
// check_*_name does not (tabs, newlines, leading dots of domains), and such a thing must still be found and deleted.
bool is_file_name(std::string_view name);

// For whoever asked for one that is not there: "there are: a, b, c and 7 more"; "there are none".
std::string there_are(const std::vector<std::string>& names);

}  // namespace varve
