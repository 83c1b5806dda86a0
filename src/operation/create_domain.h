// Makes a domain with new disks: the images and the definition, or nothing of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operation/operation.h"

namespace varve {

struct NewDiskRequest {
  std::string format = "qcow2";  // or "raw"
  std::string path;              // root path; empty: in the images directory, called after the domain
  bool existing = false;         // the image at `path` is there already
  qcow2::CreateOptions options;  // of a new one
};

struct CreateDomainRequest {
  std::string name;
  uint64_t memory_bytes = uint64_t{1} << 30;
  unsigned vcpus = 1;
  std::string type = "kvm";  // or "qemu"
  std::vector<NewDiskRequest> disks;
};

Result<Operation> plan_create_domain(Host& host, const CreateDomainRequest& request);

}  // namespace varve
