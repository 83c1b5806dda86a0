// The disks of a snapshot, served over NBD to programs that this command runs itself: libguestfs, nbdfuse.
#pragma once

#include <string>
#include <vector>

#include "cli/nbdkit.h"
#include "inspect/snapshot_points.h"

namespace varve::cli {

class PointServer {
 public:
  // Ready for clients when it returns: every disk is an export of its target's name, for reading. An InterruptWatch has
  // to live. kUnsupported where there is no nbdkit.
  static Result<PointServer> start(const std::string& domain, const std::vector<DiskPoint>& disks);

  std::string socket() const { return directory_.socket(); }  // of this user alone
  const std::vector<std::string>& targets() const { return targets_; }

 private:
  PointServer(PrivateDirectory directory, ListeningSockets sockets, Nbdkit server, std::vector<std::string> targets)
      : directory_(std::move(directory)),
        sockets_(std::move(sockets)),
        server_(std::move(server)),
        targets_(std::move(targets)) {}

  PrivateDirectory directory_;
  ListeningSockets sockets_;
  Nbdkit server_;
  std::vector<std::string> targets_;
};

}  // namespace varve::cli
