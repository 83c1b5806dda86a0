// What the domains of a host need of its images: who removes an image, or changes what it holds, asks here first.
#pragma once

#include <map>
#include <string>

#include "base/result.h"

namespace varve {

class Host;

struct ImageNeed {
  std::string domain;       // one that needs it
  bool is_backing = false;  // below a disk of that domain, not a disk itself
};

// By resolved path: the disks and the firmware variables of all domains, of today and of their snapshots, and every
// backing file below those; the domain `but_for` is left out, unless it is empty. kRefused where a document can't be
// understood: then nobody can tell what it needs.
Result<std::map<std::string, ImageNeed>> images_needed(const Host& host, const std::string& but_for);

}  // namespace varve
