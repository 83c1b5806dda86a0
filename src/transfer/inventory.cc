#include "transfer/inventory.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <set>

#include "disk/backing_files.h"
#include "disk/snapshot_disks.h"
#include "domain/snapshot_tree.h"
#include "io/file_usage.h"
#include "qcow2/header.h"
#include "store/journal.h"

namespace varve {

namespace {

class Taking {
 public:
  Taking(const Host& host, const DomainDocument& definition, Preflight& preflight, Inventory& inventory)
      : host_(host), definition_(definition), preflight_(preflight), inventory_(inventory) {}

  void add_definition();
  Result<void> add_snapshots();
  void add_tpm();

 private:
  enum class Need : uint8_t { kNow, kThen };

  void add_disk(const Disk& disk, Need need, const std::string& whose);
  void add_nvram(const DomainDocument& definition, Need need);
  void add_boot_files(const DomainDocument& definition);
  void add_snapshot(const SnapshotDocument& snapshot);
  void add_chain(const std::string& path, FileDevice& file, const std::string& whose);
  // Nothing where it was there already or is in the way.
  MachineFile* add_file(const std::string& path, FileRole role, LockRequest lock, bool is_removable);
  void missing(const std::string& what, const std::string& path, Need need);

  const Layout& layout() const { return host_.layout(); }

  const Host& host_;
  const DomainDocument& definition_;
  Preflight& preflight_;
  Inventory& inventory_;
  std::set<std::string> seen_;                  // paths
  std::set<std::string> missing_;               // paths
  std::map<std::string, std::string> formats_;  // of disks, by host path, as documents have them
};

// What a snapshot lacks it lacked before.
void Taking::missing(const std::string& what, const std::string& path, Need need) {
  if (!missing_.insert(path).second) return;
  const std::string text = fmt::format("{}: {} is not there", what, layout().shown(path));
  if (need == Need::kThen) {
    inventory_.notes.push_back(text);
  } else {
    preflight_.refuse(make_error(ErrorKind::kRefused, text)
                          .with_note(fmt::format("`varve where '{}'` shows what it needs", definition_.name())));
  }
}

Result<uint64_t> data_bytes_of(FileDevice& file) {
  const auto usage = TRY(file_usage(file));
  return usage ? std::min(usage->size_bytes, usage->occupied_bytes) : TRY(file.size());
}

MachineFile* Taking::add_file(const std::string& path, FileRole role, LockRequest lock, bool is_removable) {
  if (!seen_.insert(path).second) return nullptr;
  MachineFile entry{.path = path,
                    .host_path = {},
                    .role = role,
                    .is_removable = is_removable,
                    .backing = {},
                    .recorded_backing = {},
                    .data_bytes = 0,
                    .stamp = {},
                    .file = nullptr};
  const auto open = [&]() -> Result<void> {
    entry.host_path = TRY(layout().resolve(path));
    entry.file = TRY(FileDevice::open(entry.host_path, Access::kReadOnly, lock));
    if (entry.file->is_block_device()) {
      return make_error(ErrorKind::kRefused, fmt::format("{} is a device, and only files move", path))
          .with_note("`varve image convert` makes a file of it");
    }
    entry.stamp = TRY(stamp_of(*entry.file));
    entry.data_bytes = TRY(data_bytes_of(*entry.file));
    return {};
  };
  if (auto opened = open(); !opened) {
    preflight_.refuse(std::move(opened).error());
    return nullptr;
  }
  // One file by two names, where there is a link on the way to one of them.
  const auto same = std::ranges::find(inventory_.files, entry.host_path, &MachineFile::host_path);
  if (same != inventory_.files.end()) {
    inventory_.aliases.emplace_back(path, same->path);
    return nullptr;
  }
  inventory_.files.push_back(std::move(entry));
  return &inventory_.files.back();
}

void Taking::add_chain(const std::string& path, FileDevice& file, const std::string& whose) {
  const auto header = preflight_.accept(qcow2::read_header(file));
  if (!header) return;
  if (header->has_data_file()) {
    preflight_.refuse(
        make_error(ErrorKind::kUnsupported, fmt::format("{}: {} has its data in another file", whose, path))
            .with_note("`varve image convert -O qcow2` makes one image of both"));
  }
  const BackingFiles chain = backing_files(layout(), path, *header);
  std::string above = path;
  for (const BackingFile& below : chain.files) {
    const auto image = std::ranges::find(inventory_.files, above, &MachineFile::path);
    if (image == inventory_.files.end()) return;
    image->backing = below.path;
    image->recorded_backing = below.recorded;
    if (below.exists) add_file(below.path, FileRole::kBackingImage, LockRequest::backing_reader(), true);
    above = below.path;
  }
  if (chain.kind == ChainProblem::kNone) return;
  preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("{}: {}", whose, chain.problem))
                        .with_note("without it the machine is not whole; `varve image rebase` changes what an image "
                                   "stands on"));
}

void Taking::add_disk(const Disk& disk, Need need, const std::string& whose) {
  if (disk.source.empty()) return;
  const std::string what = fmt::format("{}disk {}", whose, disk.target);
  const bool is_medium = disk.device != DiskDevice::kDisk || disk.readonly || disk.shareable;
  if (disk.source_type != DiskSourceType::kFile) {
    const std::string text = fmt::format("{} is of the type {} ({})", what, name_of(disk.source_type), disk.source);
    if (need == Need::kThen || is_medium || disk.source_type == DiskSourceType::kNetwork) {
      inventory_.notes.push_back(text + ", and stays where it is");
    } else {
      preflight_.refuse(make_error(ErrorKind::kUnsupported, text + ", and only files move")
                            .with_note("`varve image convert` makes a file of a device"));
    }
    return;
  }
  if (!layout().resolve(disk.source)) return missing(what, disk.source, is_medium ? Need::kThen : need);
  const LockRequest lock = disk.format == "qcow2" ? LockRequest::format_reader() : LockRequest::raw_reader();
  add_file(disk.source, FileRole::kImage, lock, !is_medium);
  // Whatever name it came by.
  const std::string host_path = layout().resolve(disk.source).value_or("");
  const auto file = std::ranges::find(inventory_.files, host_path, &MachineFile::host_path);
  if (file == inventory_.files.end()) return;  // refused
  // What was found below another image is this machine's own if it is a disk of one of its snapshots.
  if (file->role == FileRole::kBackingImage && !is_medium) file->role = FileRole::kImage;
  const auto [format, is_new] = formats_.try_emplace(host_path, disk.format);
  if (!is_new && format->second != disk.format) {
    preflight_.refuse(make_error(ErrorKind::kRefused,
                                 fmt::format("{} is {} here and {} elsewhere in the machine's documents: {}", what,
                                             disk.format.empty() ? "of no format" : disk.format,
                                             format->second.empty() ? "of no format" : format->second, disk.source))
                          .with_note("one of the two is wrong, and what the image stands on can't be told"));
  }
  if (!is_new) return;
  if (disk.format.empty() && !is_medium) {
    preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("{} has no recorded format", what))
                          .with_note("`varve vm edit` adds <driver name='qemu' type='qcow2'/> to the definition"));
  }
  if (disk.format != "qcow2") return;
  FileDevice& image = *file->file;
  const std::string path = file->path;
  add_chain(path, image, what);
}

void Taking::add_nvram(const DomainDocument& definition, Need need) {
  const auto path = definition.nvram_path();
  if (!path) return;
  // libvirt makes it when the machine starts for the first time.
  if (!layout().resolve(*path)) return need == Need::kThen ? missing("firmware variables", *path, need) : void();
  add_file(*path, FileRole::kNvram, LockRequest::none(), true);
}

// A kernel that the machine is started with directly may be others', too.
void Taking::add_boot_files(const DomainDocument& definition) {
  for (const char* name : {"os/kernel", "os/initrd", "os/dtb"}) {
    const auto path = definition.root().child_text(name);
    if (!path || path->empty()) continue;
    if (layout().resolve(*path)) {
      add_file(*path, FileRole::kBoot, LockRequest::none(), false);
    } else {
      missing(name, *path, Need::kThen);
    }
  }
}

void Taking::add_definition() {
  for (const Disk& disk : definition_.disks()) add_disk(disk, Need::kNow, "");
  add_nvram(definition_, Need::kNow);
  add_boot_files(definition_);
  if (definition_.to_xml().find("<secret ") != std::string::npos) {
    inventory_.notes.emplace_back("the definition names a secret, which stays with its libvirtd: `virsh secret-list`");
  }
}

void Taking::add_snapshot(const SnapshotDocument& snapshot) {
  const std::string whose = fmt::format("snapshot '{}': ", snapshot.name());
  const auto uses = snapshot_disks(layout(), snapshot, &definition_);
  if (!uses) {
    inventory_.notes.push_back(whose + uses.error().message);
    return;
  }
  for (const SnapshotDiskUse& use : *uses) {
    if (use.moved) inventory_.aliases.emplace_back(use.recorded_source, use.disk.source);
    // A disk that the snapshot leaves out may have gone since.
    if (use.mode == SnapshotMode::kNo && !layout().resolve(use.disk.source)) continue;
    add_disk(use.disk, Need::kThen, whose);
    if (use.mode != SnapshotMode::kExternal || use.recorded.source.empty()) continue;
    Disk overlay = use.disk;
    overlay.source = use.recorded.source;
    overlay.source_type = use.recorded.source_type;
    overlay.format = use.recorded.format.empty() ? "qcow2" : use.recorded.format;
    add_disk(overlay, Need::kThen, whose);
  }
  if (const SnapshotMemory memory = snapshot.memory(); memory.mode == SnapshotMode::kExternal) {
    if (layout().resolve(memory.file)) {
      inventory_.has_memory_files = true;
      add_file(memory.file, FileRole::kMemory, LockRequest::none(), true);
    } else {
      missing(whose + "its memory", memory.file, Need::kThen);
    }
  }
  if (const auto then = snapshot.domain()) {
    add_nvram(*then, Need::kThen);
    add_boot_files(*then);
  }
}

Result<void> Taking::add_snapshots() {
  const std::string domain = definition_.name();
  MetadataStore::Listing listing = TRY(host_.metadata().list(domain));
  // What nobody can read can't be taken along, and would be lost with a source that is removed.
  for (Error& problem : listing.problems) preflight_.refuse(std::move(problem));
  const SnapshotTree tree(std::move(listing.snapshots));
  for (const SnapshotSummary* summary : tree.topological()) {
    inventory_.snapshots.push_back(TRY(host_.metadata().load(domain, summary->name)));
    add_snapshot(inventory_.snapshots.back());
  }
  return {};
}

bool is_uuid(const std::string& text) {
  static const std::regex form("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}");
  return std::regex_match(text, form);
}

void Taking::add_tpm() {
  if (definition_.uuid().empty()) return;
  if (!is_uuid(definition_.uuid())) {  // part of a path below
    preflight_.refuse(make_error(ErrorKind::kRefused, fmt::format("'{}' is no UUID", definition_.uuid()))
                          .with_note("a definition's <uuid> has 32 hexadecimal digits, in groups of 8-4-4-4-12"));
    return;
  }
  const bool has_tpm = definition_.to_xml().find("<tpm ") != std::string::npos;
  // A user's own libvirtd has it in a directory that is its own affair.
  if (has_tpm && layout().root() == "/" &&
      layout().resolve(Layout::definitions_directory()).value_or("") != Layout::definitions_directory()) {
    preflight_.refuse(
        make_error(ErrorKind::kUnsupported,
                   "it has a TPM, whose state a libvirtd of your own keeps where Varve does not know")
            .with_note("without that state a guest can't open what it has sealed; take the <tpm> out first, or move it "
                       "by hand"));
  }
  const std::string root = fmt::format("{}/{}", Layout::tpm_directory(), definition_.uuid());
  const auto directory = layout().resolve(root);
  if (!directory) return;
  std::error_code failed;
  for (std::filesystem::recursive_directory_iterator at(*directory, failed), end; at != end && !failed;
       at.increment(failed)) {
    if (!at->is_regular_file() || at->path().filename() == ".lock") continue;
    add_file(root + at->path().string().substr(directory->size()), FileRole::kTpm, LockRequest::none(), true);
  }
  if (failed) preflight_.refuse(system_error(failed.value(), "can't look at the TPM's state", *directory));
}

}  // namespace

void check_at_rest(const Host& host, const std::string& domain, Preflight& preflight) {
  const auto state = preflight.accept(host.state(domain));
  if (state && *state != DomainState::kShutOff) {
    preflight.refuse(make_error(ErrorKind::kInUse, fmt::format("it is {}", name_of(*state)))
                         .with_note(fmt::format("shut it down first: `virsh shutdown '{}'`", domain)));
  }
  if (preflight.accept(host.has_saved_memory(domain)).value_or(false)) {
    preflight.refuse(
        make_error(ErrorKind::kRefused,
                   "its memory was saved when it stopped (managed save), and that goes on where its disks are now only")
            .with_note(fmt::format(
                "start it and shut it down, or `virsh managedsave-remove '{}'` throws the memory away", domain)));
  }
}

Result<void> check_unchanged(const MachineFile& file) {
  struct stat status;
  if (::stat(file.host_path.c_str(), &status) == 0) {
    const FileStamp now{.inode = status.st_ino,
                        .size = static_cast<uint64_t>(status.st_size),
                        .mtime_sec = status.st_mtim.tv_sec,
                        .mtime_nsec = static_cast<uint32_t>(status.st_mtim.tv_nsec)};
    if (now.same_state_as(file.stamp)) return {};
  }
  return make_error(ErrorKind::kInUse, fmt::format("{} was changed meanwhile", file.host_path))
      .with_note("the copy is of before; give the command again");
}

const MachineFile* Inventory::find(const std::string& path) const {
  const auto found = std::ranges::find(files, path, &MachineFile::path);
  return found == files.end() ? nullptr : &*found;
}

Result<Inventory> take_inventory(const Host& host, const DomainDocument& definition, Preflight& preflight) {
  Inventory inventory;
  Taking taking(host, definition, preflight, inventory);
  taking.add_definition();
  TRY(taking.add_snapshots());
  taking.add_tpm();
  std::ranges::sort(inventory.files, {}, &MachineFile::path);
  return inventory;
}

}  // namespace varve
