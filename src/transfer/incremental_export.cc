#include "transfer/incremental_export.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "store/file_change.h"
#include "store/journal.h"
#include "transfer/checksum.h"
#include "transfer/copied_file.h"
#include "transfer/delta.h"
#include "transfer/export_directory.h"
#include "transfer/file_copy.h"
#include "transfer/increment_base.h"
#include "transfer/increment_check.h"
#include "transfer/incremental_import.h"

namespace varve {

namespace {

namespace fs = std::filesystem;

// A delta's tables take 320 KiB, whatever it has in it.
constexpr uint64_t kMinDeltaFile = uint64_t{1} << 20;

std::string unfinished_mark(const std::string& domain) {
  return Layout::increment_directory(domain) + "/.unfinished";
}

// Nothing but what making the mark leaves on the way: the directory was made right before.
bool is_without_mark(const std::string& increment) {
  std::error_code failed;
  for (fs::directory_iterator at(increment, failed), end; at != end && !failed; at.increment(failed)) {
    if (!is_temporary_file_name(at->path().filename().string())) return false;
  }
  return !failed;
}

// Where an increment could go: nothing of that domain is there, or what an interrupted one left.
Result<void> check_is_free(const std::string& directory, const std::string& domain) {
  std::error_code unknown;
  for (const char* suffix : {kManifestSuffix, kChecksumsSuffix}) {
    const std::string path = fmt::format("{}/{}{}", directory, domain, suffix);
    // Checksums without a manifest: it was interrupted right before that.
    if (!fs::exists(path, unknown) || fs::exists(directory + unfinished_mark(domain), unknown)) continue;
    return make_error(ErrorKind::kAlreadyExists, fmt::format("{} is there already", path))
        .with_note("nothing is overwritten: an incremental export needs a directory of its own");
  }
  const std::string increment = directory + Layout::increment_directory(domain);
  if (!fs::exists(fs::symlink_status(increment, unknown))) return {};
  if (fs::is_directory(fs::symlink_status(increment, unknown)) &&
      (fs::exists(directory + unfinished_mark(domain), unknown) || is_without_mark(increment)) &&
      !fs::exists(fmt::format("{}/{}{}", directory, domain, kManifestSuffix), unknown)) {
    return {};
  }
  return make_error(ErrorKind::kAlreadyExists, fmt::format("{} is there already", increment))
      .with_note("nothing is overwritten: an incremental export needs a directory of its own");
}

Result<void> remove_directory(const std::string& path) {
  std::error_code failed;
  fs::remove_all(path, failed);  // links are not followed
  if (failed) return system_error(failed.value(), fmt::format("can't remove {}", path), path);
  return sync_directory(directory_of(path));
}

}  // namespace

Result<void> check_no_increment(const Layout& layout, const std::string& domain) {
  const auto there = layout.resolve(Layout::increment_directory(domain));
  if (!there) return {};
  return make_error(ErrorKind::kAlreadyExists,
                    fmt::format("{} has an incremental export of '{}' already", layout.root(), domain))
      .with_note("nothing is overwritten: take another directory");
}

Result<IncrementalExport> IncrementalExport::plan(Host& source, IncrementRequest request) {
  TRY(source.check_images_are_here());
  LockedDomain domain = TRY(source.open_domain(request.domain, DomainLock::Mode::kShared));
  Preflight preflight(fmt::format("domain '{}' is not exported", request.domain));
  check_at_rest(source, request.domain, preflight);
  Inventory inventory = TRY(take_inventory(source, domain.definition, preflight));

  std::error_code failed;
  const std::string directory = fs::weakly_canonical(request.directory, failed).string();
  if (failed)
    return system_error(failed.value(), fmt::format("can't look at {}", request.directory), request.directory);
  std::vector<std::string> notes;
  ExportChain base = TRY(request.base.empty() ? find_base(directory, domain.definition, request.snapshot, notes)
                                              : open_base(request.base, domain.definition));
  IncrementalExport result(source, std::move(domain), std::move(base), std::move(request));
  result.inventory_ = std::move(inventory);
  result.directory_ = directory;
  result.base_directory_ = TRY(base_directory_from(directory, result.base_directory()));
  TRY(check_same_snapshot(source.layout(), result.domain_.definition, result.inventory_, result.base_,
                          result.request_.snapshot, preflight));
  preflight.accept(result.base_.check_files({}));
  preflight.accept(check_is_free(directory, result.request_.domain));
  check_is_no_host(directory, result.request_.domain, preflight);

  result.placement_ = place_in_archive(result.inventory_);
  Plan& plan = result.plan_;
  const std::string& name = result.request_.domain;
  PlannedIncrement planned{.directory = directory,
                           .manifest = {.domain = name,
                                        .uuid = result.domain_.definition.uuid(),
                                        .created_sec = 0,
                                        .files = {},
                                        .base = ManifestBase{.directory = result.base_directory_,
                                                             .manifest_sha256 = result.base_.manifest_sha256(),
                                                             .snapshot = result.request_.snapshot}},
                           .data_bytes = {}};
  const auto document = [&](const std::string& path, FileRole role) {
    planned.manifest.files.push_back({.path = path, .role = role, .size_bytes = 0, .sha256 = {}});
  };
  for (const PlacedFile& placed : result.placement_.files) {
    const std::string shown = source.layout().shown(placed.file->path);
    ManifestFile& file = planned.manifest.files.emplace_back();
    file = {.path = placed.path, .role = placed.file->role, .size_bytes = placed.file->stamp.size, .sha256 = {}};
    if (result.base_.manifest().find(placed.path) != nullptr) {
      file.storage = Storage::kDelta;
      plan.steps.push_back(fmt::format("write what differs of {} ({}, {} of data)", shown, name_of(placed.file->role),
                                       format_size(placed.file->data_bytes)));
      continue;
    }
    planned.data_bytes.emplace(placed.path, placed.file->data_bytes);
    plan.steps.push_back(fmt::format("copy {}, which the earlier export does not have ({}, {} of data)", shown,
                                     name_of(placed.file->role), format_size(placed.file->data_bytes)));
  }
  document(Layout::definition(name), FileRole::kDefinition);
  for (const SnapshotDocument& snapshot : result.inventory_.snapshots) {
    document(Layout::snapshot(name, snapshot.name()), FileRole::kSnapshot);
  }
  check_increment(std::move(planned), result.base_, preflight);
  TRY(std::move(preflight).finish());
  plan.title = fmt::format("export '{}' since '{}'", result.request_.domain, result.request_.snapshot);
  plan.checks.push_back(fmt::format("the export in {} is of the same machine, and has the same snapshot '{}'",
                                    result.base_directory(), result.request_.snapshot));
  if (result.request_.verifies) plan.steps.emplace_back("read the files back, and compare their checksums");
  plan.steps.push_back(fmt::format("write the definition, {} snapshots, and {}/{}{}",
                                   result.inventory_.snapshots.size(), directory, result.request_.domain,
                                   kManifestSuffix));
  plan.notes = result.inventory_.notes;
  plan.notes.insert(plan.notes.end(), notes.begin(), notes.end());
  return result;
}

class IncrementalExport::Writing {
 public:
  Writing(IncrementalExport& exporting, const Layout& layout, const Watch& watch)
      : exporting_(exporting),
        domain_(exporting.request_.domain),
        made_{.layout = layout, .manifest = {.domain = domain_, .uuid = {}, .created_sec = 0, .files = {}}},
        watch_(watch) {}

  Result<Manifest> run(int64_t now_sec);
  // Of what was not finished. The manifest goes first.
  Result<void> remove() const;

 private:
  Result<void> document(const std::string& path, FileRole role, const std::string& text);
  Result<void> file(const PlacedFile& placed);
  Result<void> whole_file(BlockDevice& contents, ManifestFile& file);
  Result<void> changed_file(BlockDevice& contents, ManifestFile& file, const ManifestFile& earlier);
  Result<void> verify();
  Result<void> advance(uint64_t done) const {
    if (watch_.progress) watch_.progress(before_ + done, total_);
    if (!watch_.cancelled || !watch_.cancelled()) return {};
    return make_error(ErrorKind::kInterrupted, "it was stopped");
  }
  void step(const std::string& name) const { exporting_.source_->journal().step(name); }
  const Layout& layout() const { return made_.layout; }

  IncrementalExport& exporting_;
  const std::string domain_;
  ExportLevel made_;
  const Watch& watch_;
  uint64_t total_ = 0;   // bytes of progress
  uint64_t before_ = 0;  // of it, by files that are done
};

Result<void> IncrementalExport::Writing::document(const std::string& path, FileRole role, const std::string& text) {
  ManifestFile file{.path = path, .role = role, .size_bytes = text.size(), .sha256 = TRY(checksum_of(text))};
  step(fmt::format("write {}", path));
  TRY(apply(layout(), {.path = stored_path(made_.manifest, file), .contents = text}));
  made_.manifest.files.push_back(std::move(file));
  return {};
}

Result<void> IncrementalExport::Writing::whole_file(BlockDevice& contents, ManifestFile& file) {
  file.storage = Storage::kWhole;
  CopiedFile copied = TRY(CopiedFile::create(layout(), stored_path(made_.manifest, file)));
  Checksum checksum = TRY(Checksum::begin(ChecksumKind::kSha256));
  TRY(copy_device(contents, copied.file(),
                  {.bytes = [&](std::span<const std::byte> bytes) { checksum.add(bytes); },
                   .zeroes = [&](uint64_t length) { checksum.add_zeroes(length); },
                   .progress = [this](uint64_t done) { return advance(done); }}));
  file.sha256 = TRY(checksum.finish());
  return {};
}

Result<void> IncrementalExport::Writing::changed_file(BlockDevice& contents, ManifestFile& file,
                                                      const ManifestFile& earlier) {
  const ExportChain chain = ExportChain::on(made_, exporting_.base_);
  const std::shared_ptr<ExportedFile> then = TRY(exporting_.base_.open_file(file.path));
  if (exporting_.request_.verifies) then->forget_cached();
  file.storage = Storage::kDelta;
  DeltaFile delta(layout(), stored_path(made_.manifest, file), file.size_bytes, chain.backing_of(file.path), then);
  const bool is_small = file.size_bytes < kMinDeltaFile;
  bool differs = file.size_bytes != earlier.size_bytes;
  const ComparedFiles compared = TRY(compare_files(
      contents, *then,
      [&](uint64_t offset, std::span<const std::byte> bytes) -> Result<void> {
        differs = true;
        return is_small ? Result<void>() : delta.write(offset, bytes);
      },
      [this](uint64_t done) { return advance(done); }));
  file.sha256 = compared.sha256;
  if (compared.earlier_sha256 != earlier.sha256) {
    const auto damaged = find_damage(exporting_.base_, file.path);
    return make_error(ErrorKind::kCorrupt, fmt::format("{} is not what the manifest of the earlier export says",
                                                       damaged && !damaged->empty() ? *damaged : then->name()))
        .with_note(
            "that export was changed or damaged after it was made, and is no use as a base; a full export needs "
            "none");
  }
  if (!differs) {
    file.storage = Storage::kUnchanged;
    return {};
  }
  if (is_small) return whole_file(contents, file);
  if (!delta.is_there()) TRY(delta.create());
  const DeltaFile::Written written = TRY(delta.finish());
  file.delta_bytes = written.bytes;
  file.delta_sha256 = written.sha256;
  return {};
}

Result<void> IncrementalExport::Writing::file(const PlacedFile& placed) {
  step(fmt::format("write what differs of {}", placed.path));
  FileDevice& original = *placed.file->file;
  std::shared_ptr<BlockDevice> renamed;
  if (!placed.backing_name.empty()) renamed = TRY(with_backing_name(original, placed.backing_name));
  BlockDevice& contents = renamed ? *renamed : original;
  ManifestFile file{.path = placed.path, .role = placed.file->role, .size_bytes = TRY(contents.size()), .sha256 = {}};
  const ManifestFile* earlier = exporting_.base_.manifest().find(placed.path);
  TRY(earlier == nullptr ? whole_file(contents, file) : changed_file(contents, file, *earlier));
  TRY(check_unchanged(*placed.file));
  before_ += placed.file->stamp.size;
  made_.manifest.files.push_back(std::move(file));
  return {};
}

// What the base has was read on the way, and compared with its manifest.
Result<void> IncrementalExport::Writing::verify() {
  const ExportChain chain = ExportChain::on(made_, exporting_.base_);
  for (const ManifestFile& file : made_.manifest.files) {
    const auto written = TRY(chain.open_file(file.path));
    if (file.storage != Storage::kUnchanged) {
      written->forget_cached();
      Checksum checksum = TRY(Checksum::begin(ChecksumKind::kSha256));
      TRY(read_device(*written, {.bytes = [&](std::span<const std::byte> bytes) { checksum.add(bytes); },
                                 .zeroes = [&](uint64_t length) { checksum.add_zeroes(length); },
                                 .progress = [this](uint64_t done) { return advance(done); }}));
      if (TRY(checksum.finish()) != file.sha256) {
        return make_error(ErrorKind::kIo, fmt::format("{} does not read back as it was written", written->name()))
            .with_note("that disk, its cable or this machine's memory is not to be trusted; the source is as it was");
      }
    }
    if (file.role != FileRole::kDefinition && file.role != FileRole::kSnapshot) before_ += file.size_bytes;
  }
  return {};
}

Result<Manifest> IncrementalExport::Writing::run(int64_t now_sec) {
  const DomainDocument& definition = exporting_.domain_.definition;
  made_.manifest.uuid = definition.uuid();
  made_.manifest.created_sec = now_sec;
  made_.manifest.base = ManifestBase{.directory = exporting_.base_directory_,
                                     .manifest_sha256 = exporting_.base_.manifest_sha256(),
                                     .snapshot = exporting_.request_.snapshot};
  for (const PlacedFile& placed : exporting_.placement_.files) {
    total_ += placed.file->stamp.size * (exporting_.request_.verifies ? 2 : 1);
  }
  // Said first: whatever is there without a manifest is nothing yet, and may go.
  step("begin");
  TRY(apply(layout(), {.path = unfinished_mark(domain_), .contents = ""}));
  const MovedDocuments documents = TRY(move_documents(definition, exporting_.inventory_, exporting_.placement_));
  TRY(document(Layout::definition(domain_), FileRole::kDefinition, documents.definition.to_file()));
  for (const SnapshotDocument& snapshot : documents.snapshots) {
    TRY(document(Layout::snapshot(domain_, snapshot.name()), FileRole::kSnapshot, snapshot.to_file()));
  }
  for (const PlacedFile& placed : exporting_.placement_.files) TRY(file(placed));
  if (exporting_.request_.verifies) TRY(verify());
  // Which took its time.
  std::string base_sha256;
  TRY(load_manifest(exporting_.base_.layout(), domain_, &base_sha256));
  if (base_sha256 != exporting_.base_.manifest_sha256()) {
    return make_error(ErrorKind::kInUse,
                      fmt::format("the earlier export in {} was changed meanwhile", exporting_.base_directory()));
  }
  step("write the manifest");
  TRY(save_manifest(layout(), made_.manifest));
  TRY(check_can_be_imported(layout(), made_.manifest));
  step("remove the mark");
  return made_.manifest;
}

Result<void> IncrementalExport::Writing::remove() const {
  for (const char* suffix : {kManifestSuffix, kChecksumsSuffix}) {
    const std::string path = fmt::format("{}/{}{}", layout().root(), domain_, suffix);
    const auto removed = remove_file_durably(path);
    if (!removed && removed.error().kind != ErrorKind::kNotFound) return removed;
  }
  return remove_directory(layout().root() + Layout::increment_directory(domain_));
}

Result<Manifest> IncrementalExport::run(int64_t now_sec, const Watch& watch) {
  const std::string failure = fmt::format("domain '{}' is not exported", request_.domain);
  TRY(make_directories(directory_));
  const Layout layout = TRY(Layout::open(directory_));
  if (layout.root() != directory_) {
    return make_error(ErrorKind::kInUse, fmt::format("{}: {} was replaced meanwhile", failure, directory_));
  }
  const UniqueFd only_one(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!only_one) return system_error(errno, fmt::format("can't open {}", directory_), directory_);
  // Some file systems know no locks.
  if (::flock(only_one.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return make_error(ErrorKind::kInUse, fmt::format("{}: somebody else exports into {}", failure, directory_));
  }
  TRY(check_is_free(directory_, request_.domain));
  Writing writing(*this, layout, watch);
  TRY(writing.remove());  // what an interrupted one left
  auto written = writing.run(now_sec);
  if (!written) {
    const bool is_gone = writing.remove().has_value();
    ::rmdir(directory_.c_str());  // where it is empty
    return std::move(written).error().context(failure).with_note(
        is_gone ? "nothing is left of it; the source and the earlier export are as they were"
                : fmt::format("what is left of it in {} is none without a manifest; the same command begins anew",
                              directory_));
  }
  // Beside a manifest the mark means nothing.
  (void)remove_file_durably(directory_ + unfinished_mark(request_.domain)).has_value();
  return written;
}

}  // namespace varve
