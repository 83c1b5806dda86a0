#include "transfer/placement.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "domain/file_paths.h"
#include "io/file_limits.h"
#include "store/write_access.h"
#include "transfer/file_system_check.h"

namespace varve {

namespace {

namespace fs = std::filesystem;

bool is_image(FileRole role) {
  return role == FileRole::kImage || role == FileRole::kBackingImage || role == FileRole::kMemory ||
         role == FileRole::kBoot;
}

// "disk.qcow2" becomes "disk-2.qcow2" where another file of the machine has that name there.
std::string unique_path(const std::string& directory, const std::string& name, const std::set<std::string>& taken) {
  const fs::path plain(name);
  std::string path = directory + "/" + name;
  for (int number = 2; taken.contains(path); ++number) {
    path = fmt::format("{}/{}-{}{}", directory, plain.stem().string(), number, plain.extension().string());
  }
  return path;
}

// A tree that is, or was, a machine, and not a drive for machines: there a stranger's definition must not say where
// files come into being.
bool is_whole_machine(const Host& target) {
  return target.layout().root() == "/" || target.layout().resolve("/usr/bin").has_value();
}

bool is_below(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() + 1 && path.starts_with(directory) && path[directory.size()] == '/';
}

// Empty: it has to go somewhere else than it was.
std::string own_place(const MachineFile& file, const Host& target, const std::string& images_directory) {
  if (!images_directory.empty() && is_image(file.role)) return {};
  if (!is_whole_machine(target)) return file.path;
  for (const std::string& directory : {target.images_directory(), Layout::images_directory(), Layout::nvram_directory(),
                                       Layout::save_directory(), Layout::tpm_directory()}) {
    if (is_below(file.path, directory)) return file.path;
  }
  return {};
}

std::string other_place(const MachineFile& file, const Host& target, const std::string& images_directory,
                        const std::set<std::string>& taken) {
  const std::string name = fs::path(file.path).filename();
  if (file.role == FileRole::kNvram) return unique_path(Layout::nvram_directory(), name, taken);
  return unique_path(images_directory.empty() ? target.images_directory() : images_directory, name, taken);
}

// Relative, so that the images find each other wherever they are taken together; on a whole machine, where links may
// lie on the way, absolute.
std::string backing_name_for(const PlacedFile& placed, const std::string& backing, bool is_whole_machine) {
  const std::string& recorded = placed.file->recorded_backing;
  std::string name =
      is_whole_machine ? backing : fs::path(backing).lexically_relative(fs::path(placed.path).parent_path()).string();
  return name == recorded ? std::string() : name;
}

// Once it is known where every file goes.
void complete(Placement& placement, const Inventory& inventory, bool is_whole_machine) {
  for (const PlacedFile& placed : placement.files) placement.moved.emplace(placed.file->path, placed.path);
  for (const auto& [path, real_path] : inventory.aliases) {
    const auto found = placement.moved.find(real_path);
    if (found != placement.moved.end()) placement.moved.emplace(path, found->second);
  }
  for (PlacedFile& placed : placement.files) {
    if (placed.file->backing.empty()) continue;
    const auto below = placement.moved.find(placed.file->backing);
    placed.backing_name = backing_name_for(
        placed, below == placement.moved.end() ? placed.file->backing : below->second, is_whole_machine);
  }
}

class PlaceCheck {
 public:
  PlaceCheck(const Host& target, const TransferState& state, Preflight& preflight)
      : target_(target), state_(state), preflight_(preflight), access_(target.layout()), file_system_(preflight) {}

  void check(const PlacedFile& placed);
  void check_document(const std::string& path);
  void finish() { file_system_.finish(); }

 private:
  void check_size(const PlacedFile& placed, const std::string& directory, bool is_begun);

  const Host& target_;
  const TransferState& state_;
  Preflight& preflight_;
  WriteAccess access_;
  FileSystemCheck file_system_;
};

void PlaceCheck::check_size(const PlacedFile& placed, const std::string& directory, bool is_begun) {
  uint64_t bytes =
      file_system_.check_size(placed.file->path, placed.file->stamp.size, placed.file->data_bytes, directory);
  if (placed.is_renamed) return;
  for (const std::string& path : {placed.path, part_path(placed.path)}) {
    struct stat status;
    const auto there = target_.layout().resolve(path);
    if (is_begun && there && ::stat(there->c_str(), &status) == 0) {
      bytes -= std::min(bytes, static_cast<uint64_t>(status.st_blocks) * 512);
    }
  }
  file_system_.add(directory, bytes);
}

void PlaceCheck::check(const PlacedFile& placed) {
  const auto directory = target_.layout().nearest_existing(placed.path);
  if (!directory) return preflight_.refuse(directory.error());
  const auto known = std::ranges::find(state_.files, placed.path, &TransferredFile::path);
  const bool is_begun = known != state_.files.end();
  for (const std::string& path : {placed.path, part_path(placed.path)}) {
    const auto there = target_.layout().resolve(path);
    if (!there && there.error().kind == ErrorKind::kNotFound) continue;
    if (!there) return preflight_.refuse(there.error());
    if (is_begun && (path != placed.path || is_copied_file(target_.layout(), path, *known))) continue;
    preflight_.refuse(
        make_error(ErrorKind::kAlreadyExists, fmt::format("{} is there already", *there))
            .with_note("nothing is overwritten; `--images DIRECTORY` (of `vm move` and `vm import`) puts the "
                       "images elsewhere"));
  }
  if (!is_begun) preflight_.accept(access_.check(placed.path, FileFate::kImageMade));
  file_system_.check_name(placed.path, *directory);
  check_size(placed, *directory, is_begun);
}

void PlaceCheck::check_document(const std::string& path) {
  if (!target_.writer().writes_file(path)) return;
  if (const auto directory = target_.layout().nearest_existing(path)) file_system_.check_name(path, *directory);
}

}  // namespace

std::string part_path(const std::string& path) {
  return path + ".varve-part";
}

bool is_copied_file(const Layout& layout, const std::string& root_path, const TransferredFile& copied) {
  struct stat status;
  const auto path = layout.resolve(root_path);
  if (!copied.is_whole || !path || ::stat(path->c_str(), &status) != 0) return false;
  const FileStamp& then = copied.copied;
  if (static_cast<uint64_t>(status.st_size) != then.size) return false;
  // FAT makes inode numbers up anew with every mount, and knows even seconds only.
  if (file_limits(*path).has_strict_names) return std::abs(status.st_mtim.tv_sec - then.mtime_sec) <= 2;
  return status.st_ino == then.inode && status.st_mtim.tv_sec == then.mtime_sec &&
         static_cast<uint32_t>(status.st_mtim.tv_nsec) == then.mtime_nsec;
}

std::set<std::string> files_that_stay(const Inventory& inventory, const std::string& images_directory,
                                      const std::map<std::string, ImageNeed>& needed, Plan& plan) {
  std::set<std::string> staying;
  for (const MachineFile& file : inventory.files) {
    const bool is_others = !file.is_removable || needed.contains(file.host_path);
    if (is_others || file.role == FileRole::kBackingImage || file.role == FileRole::kNvram ||
        file.role == FileRole::kTpm || fs::path(file.path).parent_path() == images_directory) {
      staying.insert(file.path);
    }
    if (is_others || file.role == FileRole::kBackingImage) {
      plan.notes.push_back(fmt::format("{} stays: other machines may need it", file.path));
    }
  }
  for (size_t before = 0; before != staying.size();) {
    before = staying.size();
    for (const MachineFile& file : inventory.files) {
      const MachineFile* below = staying.contains(file.path) ? inventory.find(file.backing) : nullptr;
      if (below == nullptr || !staying.insert(below->path).second) continue;
      plan.notes.push_back(fmt::format("{} stays: {} stands on it, which stays", below->path, file.path));
    }
  }
  return staying;
}

Placement place(const Inventory& inventory, const Host& target, const std::string& images_directory,
                const std::function<bool(const MachineFile&)>& stays) {
  Placement placement;
  std::set<std::string> taken;
  for (const MachineFile& file : inventory.files) {
    if (stays(file)) continue;
    placement.files.push_back({.file = &file, .path = own_place(file, target, images_directory), .backing_name = {}});
    taken.insert(placement.files.back().path);
  }
  // Those that keep their places come first.
  for (PlacedFile& placed : placement.files) {
    if (!placed.path.empty()) continue;
    placed.path = other_place(*placed.file, target, images_directory, taken);
    taken.insert(placed.path);
  }
  complete(placement, inventory, is_whole_machine(target));
  return placement;
}

Placement place_in_archive(const Inventory& inventory) {
  Placement placement;
  for (const MachineFile& file : inventory.files) {
    placement.files.push_back({.file = &file, .path = file.path, .backing_name = {}});
  }
  complete(placement, inventory, false);
  return placement;
}

void check_place(const Placement& placement, const std::vector<FileChange>& documents, const Host& target,
                 const TransferState& state, Preflight& preflight) {
  PlaceCheck check(target, state, preflight);
  std::set<std::string> seen;
  for (const PlacedFile& placed : placement.files) {
    if (seen.insert(placed.path).second) continue;
    preflight.refuse(make_error(ErrorKind::kRefused, fmt::format("two files of the machine would be {}", placed.path)));
  }
  for (const PlacedFile& placed : placement.files) check.check(placed);
  for (const FileChange& document : documents) check.check_document(document.path);
  check.finish();
}

Result<void> check_not_needed(const Placement& placement, const Host& target, Preflight& preflight) {
  const auto needed = TRY(images_needed(target, ""));
  for (const PlacedFile& placed : placement.files) {
    const auto there = target.layout().resolve(placed.path);
    const auto need = there ? needed.find(*there) : needed.end();
    if (need == needed.end()) continue;
    preflight.refuse(make_error(ErrorKind::kAlreadyExists,
                                fmt::format("domain '{}' needs {} there by now", need->second.domain, placed.path))
                         .with_note("`--images DIRECTORY` puts the images elsewhere"));
  }
  return {};
}

Result<MovedDocuments> move_documents(const DomainDocument& definition, const Inventory& inventory,
                                      const Placement& placement) {
  MovedDocuments moved{.definition = definition, .snapshots = inventory.snapshots};
  if (replace_file_paths(moved.definition.root(), placement.moved) > 0) TRY(moved.definition.refresh());
  for (SnapshotDocument& snapshot : moved.snapshots) replace_file_paths(snapshot.root(), placement.moved);
  return moved;
}

}  // namespace varve
