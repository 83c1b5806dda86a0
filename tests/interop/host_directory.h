// A host in a fresh directory, worked on with the varve command itself and looked at with qemu-img and qemu-io.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {

class HostDirectory {
 public:
  HostDirectory();
  // In a directory that is there already, e.g. a mounted file system.
  explicit HostDirectory(std::string root) : root_(std::move(root)) {}

  const std::string& root() const { return root_; }
  // `varve -c dir:ROOT …`.
  ProcessResult varve(std::vector<std::string> arguments) const;
  // The same; a failure of the running test unless it ended with 0. Its standard output.
  std::string varve_ok(const std::vector<std::string>& arguments) const;
  nlohmann::json varve_json(std::vector<std::string> arguments) const;

  // A domain with disks vda, vdb, … of 64 MiB in images NAME.qcow2, NAME-2.qcow2, …
  void make_domain(const std::string& name, int disks = 2) const;
  std::string image(const std::string& file) const { return root_ + "/var/lib/libvirt/images/" + file; }
  std::string metadata(const std::string& domain, const std::string& snapshot) const {
    return root_ + "/var/lib/libvirt/qemu/snapshot/" + domain + "/" + snapshot + ".xml";
  }
  std::string definition(const std::string& domain) const { return root_ + "/etc/libvirt/qemu/" + domain + ".xml"; }

  // Whole MiB of one byte in the guest's disk, through qemu-io.
  void fill(const std::string& file, int byte, int first_mib = 0, int mib = 8) const;
  bool is_filled(const std::string& file, int byte, int first_mib = 0, int mib = 8) const;
  // Fails the running test unless `qemu-img check` finds neither errors nor leaks.
  void expect_clean(const std::string& file) const;
  // Tags of the image's snapshot table, in order, as qemu-img reads it.
  std::vector<std::string> points(const std::string& file) const;
  // Bytes that the image occupies on its file system.
  uint64_t occupied(const std::string& file) const;

  // Every file below ROOT with its mode and contents, lock files left out: two of these are equal when nothing changed.
  std::map<std::string, std::string> contents() const;

 private:
  TempDir directory_;
  std::string root_;
};

}  // namespace varve::test
