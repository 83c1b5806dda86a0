#include "host/image_needs.h"

#include <fmt/format.h>

#include <set>

#include "disk/backing_files.h"
#include "host/host.h"
#include "io/file_device.h"

namespace varve {

namespace {

Error cannot_tell(const Error& error, const std::string& domain) {
  return make_error(ErrorKind::kRefused, fmt::format("what domain '{}' needs can't be told: {}", domain, error.message))
      .with_note("repair or remove that file, or go on without `--storage`, and images stay");
}

class Needs {
 public:
  explicit Needs(const Layout& layout) : layout_(layout) {}

  void add(const std::string& domain, const DomainDocument& definition) {
    if (const auto nvram = definition.nvram_path()) add_path(domain, *nvram, false);
    for (const Disk& disk : definition.disks()) {
      for (const std::string& path : disk.backing_files) add_path(domain, path, true);
      if (disk.is_local_file() && !disk.source.empty()) add_disk(domain, disk);
    }
  }
  std::map<std::string, ImageNeed> take() { return std::move(needs_); }

 private:
  bool add_path(const std::string& domain, const std::string& path, bool is_backing) {
    const auto resolved = layout_.resolve(path);
    if (!resolved) return false;  // what is not there needs nothing
    const auto [need, is_new] = needs_.try_emplace(*resolved, ImageNeed{.domain = domain, .is_backing = is_backing});
    if (!is_backing) need->second = {.domain = domain, .is_backing = false};
    return is_new;
  }

  void add_disk(const std::string& domain, const Disk& disk) {
    add_path(domain, disk.source, false);
    if (disk.format != "qcow2" || !followed_.insert(disk.source).second) return;
    const auto path = layout_.resolve(disk.source);
    if (!path) return;
    // Without locks, since the other domain may run: the names of backing files are all that is read, and who reads an
    // old one keeps an image too many.
    const auto file = FileDevice::open(*path, Access::kReadOnly, LockRequest::none());
    if (!file) return;
    const auto header = qcow2::read_header(**file);
    if (!header) return;
    for (const BackingFile& below : backing_files(layout_, disk.source, *header, LockRequest::none()).files) {
      add_path(domain, below.path, true);
    }
  }

  const Layout& layout_;
  std::map<std::string, ImageNeed> needs_;
  std::set<std::string> followed_;  // root paths
};

}  // namespace

Result<std::map<std::string, ImageNeed>> images_needed(const Host& host, const std::string& but_for) {
  Needs needs(host.layout());
  for (const std::string& other : TRY(host.definitions().names())) {
    if (other == but_for) continue;
    const auto definition = host.definitions().load(other);
    if (!definition) return cannot_tell(definition.error(), other);
    needs.add(other, *definition);
    for (const std::string& name : TRY(host.metadata().names(other))) {
      const auto snapshot = host.metadata().load(other, name);
      if (!snapshot) return cannot_tell(snapshot.error(), other);
      if (const auto then = snapshot->domain()) needs.add(other, *then);
    }
  }
  return needs.take();
}

}  // namespace varve
