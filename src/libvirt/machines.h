// The machines of a libvirtd (host/machines.h), through its API.
#pragma once

#include "host/machines.h"
#include "libvirt/connection.h"

namespace varve::libvirt {

class LibvirtMachines final : public Machines {
 public:
  LibvirtMachines(Connection& connection, bool has_images_here)
      : connection_(connection), has_images_here_(has_images_here) {}

  bool has_images_here() const override { return has_images_here_; }
  Result<unsigned long> version() const override { return connection_.version(); }
  Result<DomainDocument> present_definition(const std::string& domain) const override;
  Result<size_t> checkpoints(const std::string& domain) const override;

  // The connection must allow changes. kInterrupted: it was cancelled, and nothing was changed.
  Result<void> create_snapshot(const std::string& domain, const MachineSnapshot& snapshot, const Watch& watch) override;
  Result<void> revert(const std::string& domain, const std::string& name, AfterRevert after,
                      const Watch& watch) override;
  Result<void> remove(const std::string& domain, const std::string& name, bool children, const Watch& watch) override;

 private:
  // After a failure in the middle of a quiesced snapshot: a guest must not stay frozen. Waits for the agent, and for a
  // libvirtd that has ended, and gives what to tell the user.
  std::string make_sure_of_thaw(const std::string& domain, int quiesce_seconds) const;

  Connection& connection_;
  bool has_images_here_;
};

}  // namespace varve::libvirt
