// Which of a domain's disks an operation changes, opened for it. Shared by the operations on snapshots.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "disk/internal_disk.h"
#include "disk/snapshot_disks.h"
#include "host/host.h"
#include "operation/plan.h"
#include "operation/preflight.h"

namespace varve {

// What the user says about disks: `--disk vda=internal`, `--disk vdb=no`.
using DiskModes = std::map<std::string, SnapshotMode>;

// The mode of each disk in a new snapshot, in the order of the definition. Refusals go to `preflight`.
std::vector<SnapshotDisk> choose_modes(const DomainDocument& definition, const DiskModes& wanted, Preflight& preflight);

// Opens disks for writing, each image once: two disks with one image are refused. Notes about images that other domains
// use too go to the plan.
class DiskOpener {
 public:
  DiskOpener(const Host& host, std::string domain, Preflight& preflight, Plan& plan)
      : host_(host), domain_(std::move(domain)), preflight_(preflight), plan_(plan) {}
  // Nothing where it was refused.
  std::optional<InternalDisk> open(const Disk& disk);

 private:
  void note_other_users(const InternalDisk& disk);

  const Host& host_;
  std::string domain_;
  Preflight& preflight_;
  Plan& plan_;
  std::map<std::string, std::string> targets_;  // host path -> the disk that has it
};

// The disks of a snapshot that lie inside images. External and manual ones are refused, saying what can be done.
std::vector<SnapshotDiskUse> internal_disks_of(const Host& host, const SnapshotDocument& snapshot,
                                               const DomainDocument& definition, const char* verb,
                                               Preflight& preflight);

// Where backups keep checkpoints in the images of the domain, libvirt lets nobody go about its snapshots.
void refuse_checkpoints(const Host& host, const std::string& domain, Preflight& preflight);

// "disk vdb has no snapshot of that name", with what is there instead.
Error missing_point(const InternalDisk& disk);

}  // namespace varve
