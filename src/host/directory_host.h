// A host of the kind dir:ROOT: a directory tree in libvirt's system layout, without a daemon.
#pragma once

#include <memory>
#include <string>

#include "host/host.h"

namespace varve {

class DirectoryHost final : public Host {
 public:
  // kNotFound: ROOT does not exist. Finishes what interrupted commands left (Host::recover_all).
  static Result<std::unique_ptr<Host>> open(const std::string& root, HostEvents events);
  // The same for a ROOT that may have to be made first, with libvirt's directories in it.
  static Result<std::unique_ptr<Host>> open_or_create(const std::string& root, HostEvents events);

  // kRefused while a libvirtd runs on this tree: its files are its own.
  Result<void> check_writable() const override;
  Result<DomainState> state(const std::string&) const override { return DomainState::kShutOff; }
  Result<bool> has_saved_memory(const std::string& domain) const override;

 private:
  DirectoryHost(const Layout& layout, HostEvents events);
};

}  // namespace varve
