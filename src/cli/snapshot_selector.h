// `-l` of convert and measure: one word that is an id or a name, or snapshot.id=ID,snapshot.name=NAME, where both must
// fit.
#pragma once

#include <optional>
#include <string>

#include "cli/output.h"
#include "image/open.h"

namespace varve::cli {

struct SnapshotSelector {
  std::optional<std::string> id_or_name;
  std::optional<std::string> id;
  std::optional<std::string> name;
};

// Prints why a selector is none.
std::optional<SnapshotSelector> parse_snapshot_selector(Output& output, const std::string& text);

// The snapshot's index in the image; in QEMU's words kUnsupported where the format has none, kNotFound.
Result<size_t> find_snapshot(const image::OpenImage& image, const SnapshotSelector& selector);

}  // namespace varve::cli
