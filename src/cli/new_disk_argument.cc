#include "cli/new_disk_argument.h"

#include <fmt/format.h>

#include <bit>

#include "base/units.h"

namespace varve::cli {

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (;;) {
    const size_t comma = text.find(',', begin);
    parts.push_back(text.substr(begin, comma - begin));
    if (comma == std::string::npos) return parts;
    begin = comma + 1;
  }
}

Error not_understood(const std::string& disk, const std::string& what, const std::string& instead) {
  return make_error(ErrorKind::kInvalidArgument, fmt::format("--disk {}: {}", disk, what)).with_note(instead);
}

Result<void> apply_option(NewDiskRequest& disk, const std::string& key, const std::string& value) {
  if (key == "format") {
    if (value != "qcow2" && value != "raw") {
      return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no format of new disks", value))
          .with_note("there are qcow2 and raw; only qcow2 holds snapshots");
    }
    disk.format = value;
  } else if (key == "cluster_size") {
    disk.options.cluster_size = TRY(parse_size(value));
    const uint64_t size = disk.options.cluster_size;
    if (!std::has_single_bit(size) || size < 512 || size > (uint64_t{2} << 20)) {
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("the cluster size {} is no power of two from 512 to 2M", value));
    }
  } else if (key == "preallocation") {
    if (value != "off" && value != "metadata") {
      return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no preallocation", value))
          .with_note("there are off and metadata");
    }
    disk.options.preallocate_metadata = value == "metadata";
  } else if (key == "path") {
    disk.path = value;
  } else {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is no option of disks", key))
        .with_note("there are format, cluster_size, preallocation and path");
  }
  return {};
}

}  // namespace

Result<NewDiskRequest> parse_new_disk(const std::string& text) {
  const std::vector<std::string> parts = split(text);
  NewDiskRequest disk;
  if (parts.front().starts_with('/')) {
    disk.existing = true;
    disk.path = parts.front();
  } else {
    const auto size = parse_size(parts.front());
    if (!size || *size == 0) {
      return not_understood(text, fmt::format("'{}' is neither a size nor a path", parts.front()),
                            "a new disk is written 20G, an image that is there /var/lib/libvirt/images/disk.qcow2");
    }
    disk.options.size = (*size + 511) / 512 * 512;
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    if (equals == std::string::npos) {
      return not_understood(text, fmt::format("'{}' has no value", parts[i]), "options are written format=qcow2");
    }
    const std::string key = parts[i].substr(0, equals);
    if (disk.existing && key != "format") {
      return not_understood(text, fmt::format("'{}' is for new images", key), "of one that is there, say format=");
    }
    auto applied = apply_option(disk, key, parts[i].substr(equals + 1));
    if (!applied) return std::move(applied).error().context(fmt::format("--disk {}", text));
  }
  if (!disk.path.empty() && !disk.path.starts_with('/')) {
    return not_understood(text, fmt::format("'{}' is not an absolute path", disk.path),
                          "paths of disks are seen from the host's root: /var/lib/libvirt/images/disk.qcow2");
  }
  return disk;
}

}  // namespace varve::cli
