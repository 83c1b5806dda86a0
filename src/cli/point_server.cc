#include "cli/point_server.h"

#include "cli/snapshot_points.h"
#include "nbd/export_spec.h"

namespace varve::cli {

Result<PointServer> PointServer::start(const std::string& domain, const std::vector<DiskPoint>& disks) {
  const NbdkitPrograms programs = TRY(find_nbdkit());
  std::vector<nbd::ExportSpec> specs;
  std::vector<std::string> targets;
  for (const DiskPoint& disk : disks) {
    TRY(open_point(domain, disk));  // here rather than in nbdkit: a better message
    specs.push_back({.name = disk.target, .point = disk.point, .overlay = {}});
    targets.push_back(disk.target);
  }
  PrivateDirectory directory = TRY(PrivateDirectory::make());
  ListeningSockets sockets = TRY(ListeningSockets::on_path(directory.socket()));
  std::vector<std::string> arguments = {"-t", "6", "-r", programs.plugin};
  for (std::string& parameter : nbd::parameters_of(specs)) arguments.push_back(std::move(parameter));
  Nbdkit server = TRY(Nbdkit::start(programs, arguments, sockets, directory.pid_file()));
  return PointServer(std::move(directory), std::move(sockets), std::move(server), std::move(targets));
}

}  // namespace varve::cli
