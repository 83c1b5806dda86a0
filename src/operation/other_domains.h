// What the other domains of a host need of its images: who removes an image, or changes what it holds, asks here first.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "host/host.h"

namespace varve {

struct ImageNeed {
  std::string domain;       // one that needs it
  bool is_backing = false;  // below a disk of that domain, not a disk itself
};

// By resolved path: the disks of all domains but `domain`, of today and of their snapshots, and every backing file
// below those. kRefused where a document can't be understood: then nobody can tell what it needs.
Result<std::map<std::string, ImageNeed>> images_of_other_domains(const Host& host, const std::string& domain);

}  // namespace varve
