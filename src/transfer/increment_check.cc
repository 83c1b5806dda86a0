#include "transfer/increment_check.h"

#include <fmt/format.h>

#include <climits>
#include <filesystem>
#include <set>

#include "base/paths.h"
#include "transfer/export_directory.h"
#include "transfer/file_system_check.h"
#include "transfer/placement.h"
#include "transfer/transfer_state.h"

namespace varve {

namespace {

namespace fs = std::filesystem;

constexpr const char* kFullOne = "a full export needs no earlier one: `varve vm export VM DIRECTORY`";

std::string nearest_directory(std::string path) {
  std::error_code unknown;
  while (path.size() > 1 && !fs::exists(path, unknown)) path = directory_of(path);
  return path;
}

void check_depth(const ExportChain& base, Preflight& preflight) {
  if (base.depth() <= kMaxIncrements) return;
  preflight.refuse(
      make_error(ErrorKind::kRefused, fmt::format("{} incremental exports stand on one another in {} already, and more "
                                                  "than {} can't be",
                                                  base.depth() - 1, base.layout().root(), kMaxIncrements))
          .with_note("a full export begins anew: `varve vm export VM DIRECTORY`"));
}

void check_length(const std::string& path, Preflight& preflight) {
  for (const fs::path& part : fs::path(path)) {
    if (part.native().size() <= NAME_MAX) continue;
    preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("'{}' would be the name of a file, which is longer "
                                                                 "than {} bytes",
                                                                 part.string(), NAME_MAX))
                         .with_note(kFullOne));
  }
}

// A file of the machine may bear the name that another one's delta would have, or lie in such a directory. Whether a
// file is going to be a delta is known when it has been compared.
void check_places(const Manifest& manifest, Preflight& preflight) {
  std::set<std::string> taken;
  for (const ManifestFile& file : manifest.files) {
    for (std::string path = file.path; path.size() > 1; path = directory_of(path)) taken.insert(path);
  }
  for (const ManifestFile& file : manifest.files) {
    if (file.storage != Storage::kDelta || !taken.contains(file.path + kDeltaSuffix)) continue;
    preflight.refuse(make_error(ErrorKind::kRefused,
                                fmt::format("the delta of {0} would be {0}{1}, which is another file of the machine",
                                            file.path, kDeltaSuffix))
                         .with_note(kFullOne));
  }
}

// That QEMU can follow the names from one delta to the next.
void check_backing_names(const PlannedIncrement& planned, const ExportChain& chain, Preflight& preflight) {
  for (const ManifestFile& file : planned.manifest.files) {
    if (file.storage != Storage::kDelta) continue;
    const bool is_too_long = chain.backing_of(file.path).name.size() > qcow2::kMaxBackingNameBytes;
    // It does not resolve the "..", but appends name to name.
    if (!is_too_long && chain.path_in_qemu(planned.directory, file.path).size() < PATH_MAX) continue;
    preflight.refuse(make_error(ErrorKind::kRefused,
                                fmt::format("the path from the delta of {} to what it stands on would be longer than "
                                            "QEMU can follow",
                                            file.path))
                         .with_note("take shorter names of directories, or a full export, which begins anew"));
  }
}

void check_file_system(const PlannedIncrement& planned, Preflight& preflight) {
  const std::string nearest = nearest_directory(planned.directory);
  FileSystemCheck check(preflight);
  const std::string& domain = planned.manifest.domain;
  for (const char* suffix : {kManifestSuffix, kChecksumsSuffix}) check.check_name(domain + suffix, nearest);
  for (const ManifestFile& file : planned.manifest.files) {
    check.check_name(stored_path(planned.manifest, file), nearest);
    // How much differs of others is known when it has been compared, which takes as long as the export itself.
    if (const auto bytes = planned.data_bytes.find(file.path); bytes != planned.data_bytes.end()) {
      check.add(nearest, check.check_size(file.path, file.size_bytes, bytes->second, nearest));
    }
  }
  check.finish();
}

}  // namespace

void check_increment(PlannedIncrement planned, const ExportChain& base, Preflight& preflight) {
  check_depth(base, preflight);
  Manifest& manifest = planned.manifest;
  check_length(fmt::format("/{}{}", manifest.domain, kManifestSuffix), preflight);
  for (ManifestFile& file : manifest.files) {
    check_length(stored_path(manifest, file), preflight);
    check_length(part_path(file.path), preflight);  // of the import
    file.sha256.assign(64, '0');
    if (file.storage == Storage::kDelta) file.delta_sha256 = file.sha256;
  }
  check_places(manifest, preflight);
  check_backing_names(planned, ExportChain::on({.layout = base.layout(), .manifest = manifest}, base), preflight);
  if (const auto recordable = check_recordable(manifest); !recordable) {
    preflight.refuse(recordable.error());
  } else if (preflight.ok()) {
    preflight.accept([&]() -> Result<void> {
      TRY(parse_manifest(to_json(manifest), manifest.domain + kManifestSuffix));
      return {};
    }());
  }
  check_file_system(planned, preflight);
}

void check_is_no_host(const std::string& directory, const std::string& domain, Preflight& preflight) {
  const auto layout = Layout::open(directory);
  if (!layout) return;  // it is not there yet
  for (const std::string& path : {Layout::definition(domain), directory_of(Layout::snapshot(domain, "s")),
                                  TransferStateFile(*layout, domain).root_path()}) {
    const auto there = layout->resolve(path);
    if (!there) continue;
    preflight.refuse(
        make_error(ErrorKind::kAlreadyExists,
                   fmt::format("{} is a host that has something of '{}' already: {}", directory, domain, *there))
            .with_note("an incremental export needs a directory of its own"));
  }
}

Result<void> check_can_be_imported(const Layout& layout, const Manifest& made) {
  const auto check = [&]() -> Result<void> {
    const ExportChain chain = TRY(ExportChain::open(layout, made.domain));
    if (to_json(chain.manifest()) != to_json(made)) {
      return make_error(ErrorKind::kIo, "the manifest does not read back as it was written");
    }
    TRY(chain.check_files({}));
    for (const ManifestFile& file : made.files) {
      if (file.role == FileRole::kDefinition || file.role == FileRole::kSnapshot) TRY(chain.document(file.path));
    }
    return {};
  };
  auto checked = check();
  if (checked) return {};
  return std::move(checked).error().context("what was written could not be imported again");
}

}  // namespace varve
