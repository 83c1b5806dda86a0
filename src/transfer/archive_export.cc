#include "transfer/archive_export.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/paths.h"
#include "base/units.h"
#include "io/file_limits.h"
#include "io/free_space.h"
#include "transfer/archive.h"
#include "transfer/checksum.h"
#include "transfer/copied_file.h"

namespace varve {

Result<ArchiveExport> ArchiveExport::plan(Host& source, const std::string& domain, const std::string& path) {
  TRY(source.check_images_are_here());
  ArchiveExport result(TRY(source.open_domain(domain, DomainLock::Mode::kShared)), path);
  Preflight preflight(fmt::format("domain '{}' is not exported", domain));
  check_at_rest(source, domain, preflight);
  result.inventory_ = TRY(take_inventory(source, result.domain_.definition, preflight));
  struct stat status;
  if (::lstat(path.c_str(), &status) == 0) {
    preflight.refuse(make_error(ErrorKind::kAlreadyExists, fmt::format("{} is there already", path))
                         .with_note("nothing is overwritten: remove it first, or give another name"));
  }
  result.placement_ = place_in_archive(result.inventory_);
  uint64_t bytes = 0;
  for (const PlacedFile& placed : result.placement_.files) {
    bytes += placed.file->data_bytes;
    result.plan_.steps.push_back(fmt::format("put {} into it ({}, {} of data)",
                                             source.layout().shown(placed.file->path), name_of(placed.file->role),
                                             format_size(placed.file->data_bytes)));
  }
  const std::string directory = directory_of(path);
  const FileLimits limits = file_limits(directory);
  if (limits.max_file_bytes && bytes > *limits.max_file_bytes) {
    preflight.refuse(
        make_error(
            ErrorKind::kRefused,
            fmt::format("it has {} of data, and the file system {} at {} holds files of less than {} "
                        "only",
                        format_size(bytes), limits.file_system, directory, format_size(*limits.max_file_bytes + 1)))
            .with_note("export it into a directory, where every image is a file of its own, or take a "
                       "drive with another file system"));
  }
  SpaceNeeds space;
  space.add(directory, bytes);
  preflight.accept(space.check());
  TRY(std::move(preflight).finish());
  result.plan_.title = fmt::format("export '{}'", domain);
  result.plan_.checks.emplace_back("there is space for it");
  result.plan_.steps.push_back(fmt::format("put the definition, {} snapshots and the manifest into it, and name it {}",
                                           result.inventory_.snapshots.size(), path));
  result.plan_.notes = result.inventory_.notes;
  return result;
}

Result<Manifest> ArchiveExport::write(ArchiveWriter& archive, int64_t now_sec, const Watch& watch) {
  const std::string domain = domain_.definition.name();
  Manifest manifest{.domain = domain, .uuid = domain_.definition.uuid(), .created_sec = now_sec, .files = {}};
  const auto add_text = [&](const std::string& path, FileRole role, const std::string& text) -> Result<void> {
    manifest.files.push_back({.path = path, .role = role, .size_bytes = text.size(), .sha256 = TRY(checksum_of(text))});
    return archive.add(path.substr(1), text);
  };
  const MovedDocuments documents = TRY(move_documents(domain_.definition, inventory_, placement_));
  TRY(add_text(Layout::definition(domain), FileRole::kDefinition, documents.definition.to_file()));
  for (const SnapshotDocument& snapshot : documents.snapshots) {
    TRY(add_text(Layout::snapshot(domain, snapshot.name()), FileRole::kSnapshot, snapshot.to_file()));
  }
  uint64_t total = 0;
  for (const PlacedFile& placed : placement_.files) total += placed.file->stamp.size;
  uint64_t before = 0;
  for (const PlacedFile& placed : placement_.files) {
    FileDevice& file = *placed.file->file;
    std::shared_ptr<BlockDevice> changed;
    if (!placed.backing_name.empty()) changed = TRY(with_backing_name(file, placed.backing_name));
    BlockDevice& device = changed ? *changed : file;
    Checksum checksum = TRY(Checksum::begin(ChecksumKind::kSha256));
    TRY(archive.add(placed.path.substr(1), device,
                    {.bytes = [&](std::span<const std::byte> bytes) { checksum.add(bytes); },
                     .zeroes = [&](uint64_t length) { checksum.add_zeroes(length); },
                     .progress = [&](uint64_t done) -> Result<void> {
                       if (watch.progress) watch.progress(before + done, total);
                       if (!watch.cancelled || !watch.cancelled()) return {};
                       return make_error(ErrorKind::kInterrupted, "it was stopped");
                     }}));
    TRY(check_unchanged(*placed.file));
    before += placed.file->stamp.size;
    manifest.files.push_back({.path = placed.path,
                              .role = placed.file->role,
                              .size_bytes = TRY(device.size()),
                              .sha256 = TRY(checksum.finish())});
  }
  TRY(archive.add(domain + kChecksumsSuffix, to_checksums(manifest)));
  TRY(archive.add(domain + kManifestSuffix, to_json(manifest)));
  TRY(archive.finish());
  return manifest;
}

Result<Manifest> ArchiveExport::run(int64_t now_sec, const Watch& watch) {
  ArchiveWriter archive = TRY(ArchiveWriter::create(path_, now_sec));
  auto written = write(archive, now_sec, watch);
  if (written) {
    if (auto named = rename_new(archive.part(), path_); !named) written = std::move(named).error();
  }
  if (written) return written;
  ::unlink(archive.part().c_str());
  return std::move(written)
      .error()
      .context(fmt::format("domain '{}' is not exported", domain_.definition.name()))
      .with_note("nothing is left of it");
}

}  // namespace varve
