#include "libvirt/libvirt_host.h"

#include <fmt/format.h>

#include <cstdlib>

#include "libvirt/connection.h"
#include "libvirt/machines.h"
#include "libvirt/stores.h"

namespace varve::libvirt {

namespace {

// Whether the libvirtd is this machine's: no machine stands between "://" and the next slash, and the way to it is no
// program, which may lead anywhere.
bool is_of_this_machine(const std::string& uri) {
  const size_t begin = uri.find("://");
  if (begin == std::string::npos) return false;
  const std::string driver = uri.substr(0, begin);
  const size_t plus = driver.find('+');
  return uri.compare(begin + 3, 1, "/") == 0 && (plus == std::string::npos || driver.substr(plus) == "+unix");
}

bool is_session(const std::string& uri) {
  return uri.substr(0, uri.find('?')).ends_with("/session");
}

// A name for a directory.
std::string file_name_for(const std::string& uri) {
  std::string name;
  for (const char c : uri) name += (c == '/' || c == ':' || c == '?') ? '_' : c;
  return name;
}

// libvirt's directories on this host as a ROOT has them, and Varve's own.
Result<Layout> layout_for(const std::string& uri, const UserDirectories& user) {
  Layout layout = TRY(Layout::open("/"));
  const bool is_ours = is_of_this_machine(uri);
  if (is_ours && !is_session(uri) && user.is_root) return layout;
  if (!user.state.starts_with('/')) {
    return make_error(ErrorKind::kInvalidArgument, "neither $XDG_STATE_HOME nor $HOME is set to an absolute path");
  }
  layout.redirect(Layout::varve_directory(), fmt::format("{}/varve/{}", user.state, file_name_for(uri)));
  if (is_ours && is_session(uri)) {
    const std::string qemu = user.configuration + "/libvirt/qemu";
    layout.redirect(Layout::definitions_directory(), qemu);
    layout.redirect(Layout::snapshots_directory(), qemu + "/snapshot");
    layout.redirect(Layout::nvram_directory(), qemu + "/nvram");
    layout.redirect(Layout::save_directory(), qemu + "/save");
  }
  return layout;
}

using VolumeHandle = std::unique_ptr<virStorageVol, decltype(&::virStorageVolFree)>;
using PoolHandle = std::unique_ptr<virStoragePool, decltype(&::virStoragePoolFree)>;

class LibvirtHost final : public Host {
 public:
  LibvirtHost(std::unique_ptr<Connection> connection, const Layout& layout, std::string images, HostEvents events)
      : Host(layout, std::move(events),
             {.definitions = std::make_unique<Definitions>(*connection),
              .metadata = std::make_unique<Metadata>(*connection),
              .writer = std::make_shared<Writer>(*connection, layout)}),
        connection_(std::move(connection)),
        machines_(*connection_, is_of_this_machine(connection_->uri())),
        images_(std::move(images)) {}

  Result<void> check_writable() const override { return connection_->allow_changes(); }

  Result<bool> has_saved_memory(const std::string& domain) const override {
    const DomainHandle found = TRY(connection_->domain(domain));
    const int saved = connection_->library().virDomainHasManagedSaveImage(found.get(), 0);
    if (saved >= 0) return saved == 1;
    return connection_->last_error(fmt::format("whether '{}' has a managed save can't be told", domain));
  }

  Result<DomainState> state(const std::string& domain) const override {
    const DomainHandle found = TRY(connection_->domain(domain));
    int state = 0;
    if (connection_->library().virDomainGetState(found.get(), &state, nullptr, 0) < 0) {
      return connection_->last_error(fmt::format("the state of '{}' can't be read", domain));
    }
    switch (state) {
      case VIR_DOMAIN_SHUTOFF:
        return DomainState::kShutOff;
      case VIR_DOMAIN_CRASHED:  // its QEMU may be kept to be looked at
        return connection_->library().virDomainIsActive(found.get()) == 1 ? DomainState::kPaused
                                                                          : DomainState::kShutOff;
      case VIR_DOMAIN_PAUSED:
        return DomainState::kPaused;
      case VIR_DOMAIN_PMSUSPENDED:
        return DomainState::kSuspended;
      default:
        return DomainState::kRunning;
    }
  }

  std::string images_directory() const override { return images_; }

  std::optional<StorageVolume> volume_of(const std::string& root_path) const override {
    const Library& library = connection_->library();
    const VolumeHandle volume(library.virStorageVolLookupByPath(connection_->handle(), root_path.c_str()),
                              library.virStorageVolFree);
    if (!volume) return std::nullopt;
    const PoolHandle pool(library.virStoragePoolLookupByVolume(volume.get()), library.virStoragePoolFree);
    if (!pool) return std::nullopt;
    return StorageVolume{.pool = library.virStoragePoolGetName(pool.get()),
                         .name = library.virStorageVolGetName(volume.get())};
  }

  std::optional<std::string> path_of(const StorageVolume& wanted) const override {
    const Library& library = connection_->library();
    const PoolHandle pool(library.virStoragePoolLookupByName(connection_->handle(), wanted.pool.c_str()),
                          library.virStoragePoolFree);
    if (!pool) return std::nullopt;
    const VolumeHandle volume(library.virStorageVolLookupByName(pool.get(), wanted.name.c_str()),
                              library.virStorageVolFree);
    if (!volume) return std::nullopt;
    const std::unique_ptr<char, decltype(&std::free)> path(library.virStorageVolGetPath(volume.get()), &std::free);
    return path ? std::optional<std::string>(path.get()) : std::nullopt;
  }

  // They are asked to do things; the host stays what it is.
  Machines* machines() const override { return &machines_; }

  using Host::recover_all;

 private:
  std::unique_ptr<Connection> connection_;
  mutable LibvirtMachines machines_;
  std::string images_;
};

}  // namespace

Result<std::unique_ptr<Host>> open_host(const std::string& uri, const UserDirectories& user, HostEvents events) {
  const Layout layout = TRY(layout_for(uri, user));
  std::unique_ptr<Connection> connection = TRY(Connection::open(uri));
  // Where virt-manager makes them for a libvirtd of the user's own.
  const bool is_users = is_session(uri) && user.data.starts_with('/');
  auto host = std::make_unique<LibvirtHost>(std::move(connection), layout,
                                            is_users ? user.data + "/libvirt/images" : Layout::images_directory(),
                                            std::move(events));
  host->recover_all();
  return std::unique_ptr<Host>(std::move(host));
}

}  // namespace varve::libvirt
