#include "cli/snapshot_selector.h"

#include <fmt/format.h>

namespace varve::cli {

std::optional<SnapshotSelector> parse_snapshot_selector(Output& output, const std::string& text) {
  SnapshotSelector selector;
  if (!text.starts_with("snapshot.")) {
    selector.id_or_name = text;
    return selector;
  }
  size_t begin = 0;
  while (begin <= text.size()) {
    // The next element; ",," in it is a comma.
    std::string element;
    size_t at = begin;
    for (; at < text.size(); ++at) {
      if (text[at] == ',' && (at + 1 == text.size() || text[at + 1] != ',')) break;
      if (text[at] == ',') ++at;
      element += text[at];
    }
    begin = at + 1;
    const size_t equals = element.find('=');
    const std::string name = element.substr(0, equals);
    const std::string value = equals == std::string::npos ? "on" : element.substr(equals + 1);
    if (name == "snapshot.id") {
      selector.id = value;
    } else if (name == "snapshot.name") {
      selector.name = value;
    } else {
      output.error(fmt::format("Invalid parameter '{}'", name));
      output.error(fmt::format("Failed in parsing snapshot param '{}'", text));
      return std::nullopt;
    }
  }
  return selector;
}

Result<size_t> find_snapshot(const image::OpenImage& image, const SnapshotSelector& selector) {
  if (image.qcow2() == nullptr) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("Failed to load snapshot: Block format '{}' used by device '' does not support "
                                  "temporarily loading internal snapshots",
                                  name_of(image.format())));
  }
  const std::vector<qcow2::Snapshot>& snapshots = image.qcow2()->snapshots();
  std::optional<size_t> index;
  if (selector.id_or_name) index = qcow2::find_by_id_or_name(snapshots, *selector.id_or_name);
  for (size_t i = 0; i < snapshots.size() && !index && (selector.id || selector.name); ++i) {
    const bool id_fits = !selector.id || *selector.id == snapshots[i].id;
    const bool name_fits = !selector.name || *selector.name == snapshots[i].name;
    if (id_fits && name_fits) index = i;
  }
  if (!index) return make_error(ErrorKind::kNotFound, "Failed to load snapshot: Can't find snapshot");
  return *index;
}

}  // namespace varve::cli
