// What QEMU calls an image that is open: the shortest name that opens the same thing again. A path, or a name with a
// protocol before it, where there is one; else a json: name of all that makes a difference.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/source_option.h"

namespace varve::cli {

struct NodeName {
  std::optional<std::string> plain;
  std::string json;  // the object alone
  std::string text() const { return plain ? *plain : "json:" + json; }
};

NodeName file_node(const std::string& path);
// QEMU's null-co and null-aio.
NodeName null_node(const std::string& driver, const SourceOptions& options);
// A format of this name over `file`, with options that make a difference.
NodeName format_node(const std::string& format, const NodeName& file, const SourceOptions& options);
// blkdebug over `image`, with its own options.
NodeName debug_node(const NodeName& image, const SourceOptions& options);

}  // namespace varve::cli
