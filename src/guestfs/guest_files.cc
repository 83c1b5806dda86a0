#include "guestfs/guest_files.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "guestfs/device_names.h"
#include "guestfs/library.h"

namespace varve::guestfs {

namespace {

struct FreeText {
  void operator()(char* text) const { std::free(text); }
};
using Text = std::unique_ptr<char, FreeText>;

std::string text_of(char* text) {
  const Text owned(text);
  return owned == nullptr ? std::string() : std::string(owned.get());
}

// What libguestfs gives as a list of texts that ends with a null pointer, freed here.
std::vector<std::string> texts_of(char** list) {
  std::vector<std::string> texts;
  for (char** text = list; text != nullptr && *text != nullptr; ++text) texts.push_back(text_of(*text));
  std::free(static_cast<void*>(list));
  return texts;
}

// The other way round; valid as long as `texts` is.
std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

GuestFileKind kind_of(int64_t mode) {
  switch (static_cast<uint32_t>(mode) & S_IFMT) {
    case S_IFREG:
      return GuestFileKind::kFile;
    case S_IFDIR:
      return GuestFileKind::kDirectory;
    case S_IFLNK:
      return GuestFileKind::kLink;
    case S_IFBLK:
      return GuestFileKind::kBlockDevice;
    case S_IFCHR:
      return GuestFileKind::kCharacterDevice;
    case S_IFIFO:
      return GuestFileKind::kFifo;
    case S_IFSOCK:
      return GuestFileKind::kSocket;
    default:
      return GuestFileKind::kOther;
  }
}

GuestFile file_of(const FileStatus& stat, std::string name) {
  return {.name = std::move(name),
          .kind = kind_of(stat.st_mode),
          .mode = static_cast<uint32_t>(stat.st_mode) & 07777U,
          .owner = stat.st_uid,
          .group = stat.st_gid,
          .size_bytes = stat.st_size,
          .modified_sec = stat.st_mtime_sec,
          .modified_nsec = stat.st_mtime_nsec,
          .changed_sec = stat.st_ctime_sec,
          .changed_nsec = stat.st_ctime_nsec,
          .link_target = {}};
}

std::string last_part(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos || slash + 1 == path.size() ? path : path.substr(slash + 1);
}

}  // namespace

class GuestFiles::Handle {
 public:
  Handle(const Library& library, Guest* handle, std::vector<std::string> disk_targets)
      : g(handle), targets(std::move(disk_targets)), library_(library) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { calls().close(g); }

  // What libguestfs said of the call that failed.
  Error failed(const std::string& what) const {
    const char* said = library_.last_error(g);
    // A number from inside of the appliance: what helps against it on this host does not help there.
    const int code = library_.last_errno(g);
    const bool plain = code == ENOENT || code == ENOTDIR || code == EACCES || code == ELOOP;
    const std::string reason = plain ? std::strerror(code) : said == nullptr ? "libguestfs does not say why" : said;
    return make_error(code == ENOENT || code == ENOTDIR ? ErrorKind::kNotFound : ErrorKind::kIo,
                      fmt::format("{}: {}", what, reason));
  }

  // Errors are asked for, and not printed. libguestfs remembers that for each thread by itself.
  const Library& calls() const {
    library_.set_error_handler(g, nullptr, nullptr);
    return library_;
  }

  Guest* const g;
  const std::vector<std::string> targets;

 private:
  const Library library_;
};

GuestFiles::GuestFiles(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
GuestFiles::~GuestFiles() = default;

Result<std::unique_ptr<GuestFiles>> GuestFiles::start(const std::vector<GuestDisk>& disks, const std::string& backend) {
  const Library call = TRY(load_library());
  Guest* const g = call.create_flags(0);
  if (g == nullptr) return system_error(errno, "libguestfs can't be used");
  std::vector<std::string> targets;
  for (const GuestDisk& disk : disks) targets.push_back(disk.target);
  auto handle = std::make_unique<Handle>(call, g, std::move(targets));
  handle->calls();
  call.set_program(g, "varve");
  if (!backend.empty() && call.set_backend(g, backend.c_str()) != 0) return handle->failed("libguestfs");
  for (const GuestDisk& disk : disks) {
    std::vector<std::string> server = {"unix:" + disk.socket};
    const std::vector<char*> servers = pointers_to(server);
    DriveOptions options = {};
    options.bitmask = DriveOptions::kReadonly | DriveOptions::kFormat | DriveOptions::kProtocol | DriveOptions::kServer;
    options.readonly = 1;
    options.format = "raw";
    options.protocol = "nbd";
    options.server = servers.data();
    if (call.add_drive_opts_argv(g, disk.export_name.c_str(), &options) != 0) {
      return handle->failed(fmt::format("libguestfs does not take disk {}", disk.target));
    }
  }
  if (call.launch(g) != 0) {
    Error error = handle->failed("libguestfs's appliance does not start");
    error.kind = ErrorKind::kUnsupported;
    return std::move(error)
        .with_note("`libguestfs-test-tool` (package libguestfs-tools or guestfs-tools) finds out why")
        .with_note(
            "often: no kernel in /boot that this user may read, or KVM that does not work, which "
            "LIBGUESTFS_BACKEND_SETTINGS=force_tcg goes without");
  }
  return std::unique_ptr<GuestFiles>(new GuestFiles(std::move(handle)));
}

Result<std::vector<GuestFileSystem>> GuestFiles::file_systems() {
  char** const list = handle_->calls().list_filesystems(handle_->g);
  if (list == nullptr) return handle_->failed("the file systems can't be listed");
  const std::vector<std::string> pairs = texts_of(list);
  std::vector<GuestFileSystem> found;
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    found.push_back({.name = name_for_people(pairs[i], handle_->targets), .type = pairs[i + 1], .mountable = pairs[i]});
  }
  return found;
}

Result<uint64_t> GuestFiles::size_bytes(const GuestFileSystem& file_system) {
  // Of a subvolume, all that the device has: "btrfsvol:/dev/sda2/@home", "btrfsvol:/dev/vg/lv/@home".
  std::string device = file_system.mountable;
  if (device.starts_with("btrfsvol:")) device = device.substr(std::string("btrfsvol:").size());
  if (device != file_system.mountable) device = device.substr(0, device.rfind('/'));
  const int64_t size = handle_->calls().blockdev_getsize64(handle_->g, device.c_str());
  if (size < 0) return handle_->failed(file_system.name);
  return static_cast<uint64_t>(size);
}

Result<std::string> GuestFiles::label(const GuestFileSystem& file_system) {
  char* const label = handle_->calls().vfs_label(handle_->g, file_system.mountable.c_str());
  if (label == nullptr) return handle_->failed(file_system.name);
  return text_of(label);
}

Result<std::vector<GuestSystem>> GuestFiles::systems() {
  char** const roots = handle_->calls().inspect_os(handle_->g);
  if (roots == nullptr) return handle_->failed("the operating systems can't be found");
  std::vector<GuestSystem> systems;
  for (const std::string& root : texts_of(roots)) {
    GuestSystem system;
    system.name = text_of(handle_->calls().inspect_get_product_name(handle_->g, root.c_str()));
    const auto pairs = texts_of(handle_->calls().inspect_get_mountpoints(handle_->g, root.c_str()));
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) system.mounts.emplace_back(pairs[i], pairs[i + 1]);
    std::ranges::sort(system.mounts);  // "/" before "/usr" before "/usr/local"
    if (system.mounts.empty() || system.mounts.front().first != "/") system.mounts = {{"/", root}};
    systems.push_back(std::move(system));
  }
  return systems;
}

Result<void> GuestFiles::mount(const GuestFileSystem& file_system) {
  if (handle_->calls().umount_all(handle_->g) != 0) return handle_->failed("unmounting");
  if (handle_->calls().mount_ro(handle_->g, file_system.mountable.c_str(), "/") == 0) return {};
  return handle_->failed(fmt::format("{} ({}) can't be read", file_system.name, file_system.type))
      .with_note(
          "it may be damaged, or of a kind that libguestfs's kernel does not know; `varve snapshot serve` gives "
          "the disk to other tools");
}

Result<std::vector<std::string>> GuestFiles::mount(const GuestSystem& system) {
  if (handle_->calls().umount_all(handle_->g) != 0) return handle_->failed("unmounting");
  std::vector<std::string> notes;
  for (const auto& [where, mountable] : system.mounts) {
    if (handle_->calls().mount_ro(handle_->g, mountable.c_str(), where.c_str()) == 0) continue;
    Error error = handle_->failed(
        fmt::format("{} can't be read, which is the guest's {}", name_for_people(mountable, handle_->targets), where));
    if (where == "/") return error;
    notes.push_back(error.message);
  }
  return notes;
}

Result<GuestFile> GuestFiles::look_up(const std::string& path) {
  FileStatus* const stat = handle_->calls().statns(handle_->g, path.c_str());
  if (stat == nullptr) return handle_->failed(path);
  GuestFile file = file_of(*stat, last_part(path));
  handle_->calls().free_statns(stat);
  return file;
}

Result<GuestFile> GuestFiles::look_at(const std::string& path) {
  FileStatus* const stat = handle_->calls().lstatns(handle_->g, path.c_str());
  if (stat == nullptr) return handle_->failed(path);
  GuestFile file = file_of(*stat, last_part(path));
  handle_->calls().free_statns(stat);
  if (file.kind == GuestFileKind::kLink) {
    file.link_target = text_of(handle_->calls().readlink(handle_->g, path.c_str()));
  }
  return file;
}

Result<std::vector<GuestFile>> GuestFiles::list(const std::string& directory) {
  const Library& call = handle_->calls();
  DirectoryEntries* const entries = call.readdir(handle_->g, directory.c_str());
  if (entries == nullptr) return handle_->failed(directory);
  std::vector<std::string> names;
  for (uint32_t i = 0; i < entries->len; ++i) {
    const std::string name = entries->val[i].name;
    if (name != "." && name != "..") names.push_back(name);
  }
  call.free_dirent_list(entries);
  std::vector<GuestFile> files;
  if (names.empty()) return files;
  FileStatuses* const stats = call.lstatnslist(handle_->g, directory.c_str(), pointers_to(names).data());
  if (stats == nullptr) return handle_->failed(directory);
  for (uint32_t i = 0; i < stats->len && i < names.size(); ++i) {
    // An inode of -1: it can't be looked at, which a damaged file system may bring about.
    GuestFile file = file_of(stats->val[i], names[i]);
    if (stats->val[i].st_ino == -1) {
      file = GuestFile();
      file.name = names[i];
    }
    files.push_back(std::move(file));
  }
  call.free_statns_list(stats);

  std::vector<std::string> links;
  for (const GuestFile& file : files) {
    if (file.kind == GuestFileKind::kLink) links.push_back(file.name);
  }
  if (links.empty()) return files;
  char** const targets = call.readlinklist(handle_->g, directory.c_str(), pointers_to(links).data());
  if (targets == nullptr) return handle_->failed(directory);
  const std::vector<std::string> found = texts_of(targets);
  size_t next = 0;
  for (GuestFile& file : files) {
    if (file.kind == GuestFileKind::kLink && next < found.size()) file.link_target = found[next++];
  }
  return files;
}

Result<void> GuestFiles::read(const std::string& path, int fd) {
  const std::string target = fmt::format("/dev/fd/{}", fd);
  if (handle_->calls().download(handle_->g, path.c_str(), target.c_str()) == 0) return {};
  return handle_->failed(path);
}

Result<void> GuestFiles::read_tree(const std::string& directory, int fd) {
  const std::string target = fmt::format("/dev/fd/{}", fd);
  TarOutOptions options = {};
  options.bitmask = TarOutOptions::kNumericOwner;
  options.numericowner = 1;
  // It would follow a link of the guest's into the appliance itself.
  const std::string real = text_of(handle_->calls().realpath(handle_->g, directory.c_str()));
  if (real.empty()) return handle_->failed(directory);
  if (handle_->calls().tar_out_opts_argv(handle_->g, real.c_str(), target.c_str(), &options) == 0) return {};
  return handle_->failed(directory);
}

void GuestFiles::cancel() {
  handle_->calls().user_cancel(handle_->g);
}

Result<void> GuestFiles::show_at(const std::string& directory, const std::function<void()>& ready) {
  const Library& call = handle_->calls();
  MountLocalOptions options = {};
  options.bitmask = MountLocalOptions::kReadonly;
  options.readonly = 1;
  if (call.mount_local_argv(handle_->g, directory.c_str(), &options) != 0) {
    return handle_->failed(fmt::format("'{}' can't be mounted on", directory))
        .with_note(
            "FUSE is needed: the device /dev/fuse, and fusermount (Debian's package fuse or fuse3) for users "
            "other than root");
  }
  ready();
  // Unmounted, it ends, and may call that an error.
  handle_->calls().mount_local_run(handle_->g);
  return {};
}

}  // namespace varve::guestfs
