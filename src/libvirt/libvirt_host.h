// A host whose domains a libvirtd has (qemu:///system, qemu:///session, qemu+ssh://…). Documents are read and written
// through libvirt's C API; images are opened here, under QEMU's locks, where they are files of this machine
// (docs/decisions/010-libvirt-hosts.md).
#pragma once

#include <memory>
#include <string>

#include "host/host.h"

namespace varve::libvirt {

class Connection;

// Where things are that the environment says; the caller reads it.
struct UserDirectories {
  std::string configuration;  // $XDG_CONFIG_HOME: where a libvirtd of the user's own has its files
  std::string data;           // $XDG_DATA_HOME: where its images are
  std::string state;          // $XDG_STATE_HOME: where Varve's journal and locks are for hosts that are not root's
  bool is_root = false;
};

// kPermission, kNotFound: there is no connection. What interrupted commands left is finished (Host::recover_all).
Result<std::unique_ptr<Host>> open_host(const std::string& uri, const UserDirectories& user, HostEvents events);

}  // namespace varve::libvirt
