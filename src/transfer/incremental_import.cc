#include "transfer/incremental_import.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "base/atomic_file.h"
#include "domain/domain_document.h"
#include "domain/snapshot_document.h"
#include "operation/define_domain.h"
#include "operation/preflight.h"
#include "transfer/checksum.h"
#include "transfer/copied_file.h"
#include "transfer/export_directory.h"
#include "transfer/file_copy.h"
#include "transfer/placement.h"
#include "transfer/transfer_state.h"

namespace varve {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMapWindow = uint64_t{1} << 30;

bool is_document(FileRole role) {
  return role == FileRole::kDefinition || role == FileRole::kSnapshot;
}

// Nothing where there is none.
std::optional<dev_t> device_of(const Result<std::string>& path) {
  struct stat status;
  return path && ::stat(path->c_str(), &status) == 0 ? std::optional(status.st_dev) : std::nullopt;
}

}  // namespace

Result<ImportDirectory> ImportDirectory::open(const std::string& parent, const std::string& key) {
  std::string path = fmt::format("{}/.varve-import-{}", parent, key);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return system_error(errno, fmt::format("can't make a directory to put the export together in, {}", path), path);
  }
  UniqueFd lock(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!lock) return system_error(errno, fmt::format("can't open {}", path), path);
  // Somebody else's could change between the comparison of checksums and the end.
  struct stat status;
  if (::fstat(lock.get(), &status) != 0 || status.st_uid != ::geteuid()) {
    return make_error(ErrorKind::kRefused, fmt::format("{} is somebody else's", path)).with_note("remove it first");
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return make_error(ErrorKind::kInUse, fmt::format("another import is at work in {}", path));
  }
  return ImportDirectory(std::move(path), std::move(lock));
}

bool ImportDirectory::is_empty() const {
  std::error_code failed;
  return fs::is_empty(path_, failed);
}

uint64_t ImportDirectory::occupied_bytes() const {
  uint64_t bytes = 0;
  std::error_code failed;
  for (fs::recursive_directory_iterator at(path_, failed), end; at != end && !failed; at.increment(failed)) {
    struct stat status;
    if (::lstat(at->path().c_str(), &status) == 0) bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

Result<void> ImportDirectory::remove() const {
  std::error_code failed;
  fs::remove_all(path_, failed);
  if (failed) return system_error(failed.value(), fmt::format("can't remove {}", path_), path_);
  return {};
}

Result<std::map<std::string, uint64_t>> data_bytes(const ExportChain& chain) {
  std::map<std::string, uint64_t> bytes;
  TRY(chain.check_files([&](const ManifestFile& file, ExportedFile& contents) -> Result<void> {
    uint64_t& data = bytes[file.path];
    // A map may have as many entries as the file has clusters.
    for (uint64_t at = 0; at < file.size_bytes; at += std::min(kMapWindow, file.size_bytes - at)) {
      for (const Extent& extent : TRY(contents.extents(at, std::min(kMapWindow, file.size_bytes - at)))) {
        if (extent.kind == ExtentKind::kData) data += extent.length;
      }
    }
    return {};
  }));
  return bytes;
}

Result<void> check_import(Host& host, const ExportChain& chain, const std::string& images_directory,
                          const std::string& put_together_in, const std::map<std::string, uint64_t>& data) {
  const std::string& domain = chain.manifest().domain;
  const Layout& layout = host.layout();
  Preflight preflight(fmt::format("domain '{}' is not imported", domain));
  if (TRY(host.definitions().exists(domain))) {
    preflight.refuse(make_error(ErrorKind::kAlreadyExists, fmt::format("there is a domain '{}' already", domain))
                         .with_note(fmt::format("`varve vm undefine '{}'` makes room, if it is not needed", domain)));
  }
  const std::string path = Layout::definition(domain);
  const DomainDocument definition = TRY(DomainDocument::parse(TRY(chain.document(path)), path));
  check_uuid(host, definition, preflight, "one of the two has to be undefined: a UUID belongs to one machine");
  if (const std::vector<std::string> names = TRY(host.metadata().names(domain)); !names.empty()) {
    preflight.refuse(make_error(ErrorKind::kAlreadyExists,
                                fmt::format("there are snapshots of a domain of that name: {}", list_of(names)))
                         .with_note(fmt::format("`varve vm recover '{}'` there shows whose they are", domain)));
  }
  Inventory inventory;
  std::vector<FileChange> documents;
  for (const ManifestFile& file : chain.manifest().files) {
    if (is_document(file.role)) {
      documents.push_back({.path = file.path, .contents = {}});
      continue;
    }
    MachineFile& one = inventory.files.emplace_back();
    one.path = file.path;
    one.role = file.role;
    one.stamp.size = file.size_bytes;
    if (const auto known = data.find(file.path); known != data.end()) one.data_bytes = known->second;
  }
  const TransferState state = TRY(TransferStateFile(layout, domain).load());
  Placement placement = place(inventory, host, images_directory, [](const MachineFile&) { return false; });
  for (PlacedFile& placed : placement.files) {
    placed.is_renamed =
        device_of(layout.nearest_existing(placed.path)) == device_of(layout.nearest_existing(put_together_in + "/x"));
  }
  if (!state.files.empty()) TRY(check_not_needed(placement, host, preflight));
  check_place(placement, documents, host, state, preflight);
  return std::move(preflight).finish();
}

Result<bool> is_imported(const Host& host, const ExportChain& chain) {
  const std::string& domain = chain.manifest().domain;
  if (!TRY(host.definitions().exists(domain))) return false;
  if (TRY(host.definitions().load(domain)).uuid() != chain.manifest().uuid) return false;
  const TransferState state = TRY(TransferStateFile(host.layout(), domain).load());
  if (state.purpose != "import" || state.uuid != chain.manifest().uuid) return false;
  std::string texts;  // as Transfer says which documents it has written
  for (const ManifestFile& file : chain.manifest().files) {
    if (!is_document(file.role)) continue;
    const std::string text = TRY(chain.document(file.path));
    texts += file.role == FileRole::kDefinition ? TRY(DomainDocument::parse(text, file.path)).to_file()
                                                : TRY(SnapshotDocument::parse(text, file.path)).to_file();
  }
  return state.documents == TRY(checksum_of(texts));
}

Result<std::string> find_damage(const ExportChain& chain, const std::string& path) {
  for (const StoredFile& stored : chain.stored_files(path)) {
    const std::string host_path = TRY(stored.layout.resolve(stored.path));
    const auto file = TRY(FileDevice::open(host_path, Access::kReadOnly, LockRequest::backing_reader()));
    Checksum checksum = TRY(Checksum::begin(ChecksumKind::kSha256));
    TRY(read_through(*file, {.bytes = [&](std::span<const std::byte> bytes) { checksum.add(bytes); },
                             .zeroes = [&](uint64_t length) { checksum.add_zeroes(length); },
                             .progress = {}}));
    if (TRY(checksum.finish()) != stored.sha256) return host_path;
  }
  return std::string();
}

Error damage_error(const ExportChain& chain, const std::string& path, Error otherwise) {
  if (chain.manifest().find(path) == nullptr) return otherwise;
  otherwise.notes.clear();  // of an import that can be gone on with
  const auto damaged = find_damage(chain, path);
  if (!damaged) return std::move(otherwise).with_note(damaged.error().message);
  if (damaged->empty()) {
    return std::move(otherwise).with_note(
        "read again, every stored file that it is made of is what its manifest says: give the command again; if that "
        "does not help, a disk or this machine's memory is not to be trusted, or the export was made wrong");
  }
  std::string directory = chain.layout().root();
  for (const StoredFile& stored : chain.stored_files(path)) {
    if (stored.layout.shown(stored.path) == *damaged) directory = stored.layout.root();
  }
  const std::string& domain = chain.manifest().domain;
  Error error =
      make_error(ErrorKind::kCorrupt,
                 fmt::format("{} is not what the manifest in {} says, and {} stands on it", *damaged, directory, path))
          .with_note(fmt::format("`cd '{}' && sha256sum -c '{}{}'` shows what else is damaged there; another "
                                 "copy of that file, if there is one, mends it",
                                 directory, domain, kChecksumsSuffix));
  error.path = *damaged;
  return error;
}

Result<void> put_together(const ExportChain& chain, const std::string& directory, const Watch& watch) {
  const Layout layout = TRY(Layout::open(directory));
  uint64_t total = 0;
  for (const ManifestFile& file : chain.manifest().files) total += file.size_bytes;
  uint64_t before = 0;
  for (const ManifestFile& file : chain.manifest().files) {
    if (layout.resolve(file.path)) {
      before += file.size_bytes;
      continue;
    }
    const auto contents = TRY(chain.open_file(file.path));
    CopiedFile copied = TRY(CopiedFile::open(layout, part_path(file.path), nullptr));
    TRY(copied.file().resize(0));
    TRY(copy_device(*contents, copied.file(),
                    {.bytes = {}, .zeroes = {}, .progress = [&](uint64_t done) -> Result<void> {
                       if (watch.progress) watch.progress(before + done, total);
                       if (!watch.cancelled || !watch.cancelled()) return {};
                       return make_error(ErrorKind::kInterrupted, "it was stopped");
                     }}));
    TRY(rename_new(TRY(layout.resolve(part_path(file.path))), TRY(layout.resolve_for_creation(file.path))));
    before += file.size_bytes;
  }
  return save_manifest(layout, whole(chain.manifest()));
}

}  // namespace varve
