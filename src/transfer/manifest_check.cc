#include "transfer/manifest_check.h"

#include <fmt/format.h>

#include <set>

#include "base/atomic_file.h"
#include "transfer/checksum.h"

namespace varve {

namespace {

Result<void> check_documents(const Manifest& manifest, const Layout& layout, const Inventory& inventory) {
  const auto check = [&](const std::string& path) -> Result<void> {
    const ManifestFile* file = manifest.find(path);
    if (file == nullptr) return make_error(ErrorKind::kCorrupt, fmt::format("the manifest does not list {}", path));
    const std::string text = TRY(read_file(TRY(layout.resolve(path)), xml::kMaxDocumentSize));
    if (TRY(checksum_of(text)) == file->sha256) return {};
    return make_error(ErrorKind::kCorrupt, fmt::format("{} is not what the manifest says", layout.shown(path)))
        .with_note(
            "it was changed after the export, or damaged; without the manifest, `varve vm move --to` takes the "
            "machine as it is");
  };
  TRY(check(Layout::definition(manifest.domain)));
  for (const SnapshotDocument& snapshot : inventory.snapshots) {
    TRY(check(Layout::snapshot(manifest.domain, snapshot.name())));
  }
  return {};
}

}  // namespace

void check_manifest(const Manifest& manifest, const Layout& layout, const Inventory& inventory, Preflight& preflight,
                    Plan& plan) {
  preflight.accept(check_documents(manifest, layout, inventory));
  std::set<std::string> taken;
  for (const MachineFile& file : inventory.files) {
    taken.insert(file.path);
    const ManifestFile* listed = manifest.find(file.path);
    if (listed == nullptr) {
      preflight.refuse(make_error(ErrorKind::kCorrupt, fmt::format("the manifest does not list {}, which the machine "
                                                                   "needs",
                                                                   file.path)));
    } else if (listed->size_bytes != file.stamp.size) {
      preflight.refuse(
          make_error(ErrorKind::kCorrupt, fmt::format("{} has {} bytes, and the manifest says {}",
                                                      layout.shown(file.path), file.stamp.size, listed->size_bytes))
              .with_note("the export was cut short, or changed afterwards"));
    } else if (layout.shown(file.path) != file.host_path) {
      preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("{} is reached through a symbolic link, and an "
                                                                   "export has none",
                                                                   layout.shown(file.path))));
    }
  }
  for (const ManifestFile& file : manifest.files) {
    if (file.role == FileRole::kDefinition || file.role == FileRole::kSnapshot) {
      if (!layout.resolve(file.path)) {
        preflight.refuse(make_error(ErrorKind::kCorrupt,
                                    fmt::format("{} is missing, which the manifest lists", layout.shown(file.path))));
      }
    } else if (!taken.contains(file.path)) {
      plan.notes.push_back(
          fmt::format("{} is listed in the manifest, but no part of the machine: it is "
                      "not imported",
                      file.path));
    }
  }
}

}  // namespace varve
