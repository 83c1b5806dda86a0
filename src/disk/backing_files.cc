#include "disk/backing_files.h"

#include <fmt/format.h>

#include <filesystem>
#include <set>

#include "io/file_device.h"

namespace varve {

namespace {

constexpr size_t kMaxDepth = 200;

// A recorded name is relative to the directory of the image that records it.
std::string absolute_path(const std::string& image_path, const std::string& recorded) {
  if (recorded.starts_with('/')) return recorded;
  const std::filesystem::path directory = std::filesystem::path(image_path).parent_path();
  return (directory / recorded).lexically_normal().string();
}

// "nbd://…", "json:{…}": names that QEMU opens and that are no paths.
bool is_protocol(const std::string& name) {
  const size_t colon = name.find(':');
  return colon != std::string::npos && colon < name.find('/');
}

}  // namespace

BackingFiles backing_files(const Layout& layout, const std::string& image_path, const qcow2::Header& header,
                           LockRequest lock) {
  BackingFiles chain;
  std::set<std::string> seen = {image_path};
  std::string path = image_path;
  qcow2::Header present = header;
  const auto end = [&](ChainProblem kind, std::string problem) {
    chain.kind = kind;
    chain.problem = std::move(problem);
    return std::move(chain);
  };
  while (present.backing_file) {
    BackingFile file;
    file.recorded = *present.backing_file;
    file.format = present.backing_format.value_or("");
    if (is_protocol(*present.backing_file)) {
      file.path = *present.backing_file;
      chain.files.push_back(file);
      return end(ChainProblem::kNoPath, fmt::format("the backing file '{}' is no path", file.path));
    }
    file.path = absolute_path(path, *present.backing_file);
    const auto host_path = layout.resolve(file.path);
    file.exists = host_path.has_value();
    chain.files.push_back(file);
    if (!seen.insert(file.path).second || chain.files.size() > kMaxDepth) {
      return end(ChainProblem::kCircle, fmt::format("the backing files form a circle at {}", file.path));
    }
    if (!host_path) {
      return end(ChainProblem::kMissing, fmt::format("the backing file {} is not there", layout.shown(file.path)));
    }
    if (file.format.empty()) {
      return end(ChainProblem::kNoFormat,
                 fmt::format("{} does not record the format of its backing file {}; `qemu-img rebase -u -F FORMAT "
                             "-b '{}' '{}'` records it",
                             layout.shown(path), file.path, *present.backing_file, layout.shown(path)));
    }
    if (file.format != "qcow2") return chain;
    auto device = FileDevice::open(*host_path, Access::kReadOnly, lock);
    auto next = device ? qcow2::read_header(**device) : Result<qcow2::Header>(std::move(device).error());
    if (!next) {
      const ErrorKind kind = next.error().kind;
      chain.is_hidden = kind == ErrorKind::kInUse || kind == ErrorKind::kPermission;
      return end(ChainProblem::kUnreadable, next.error().message);
    }
    path = file.path;
    present = std::move(*next);
  }
  return chain;
}

}  // namespace varve
