// Files that libvirt's documents name: sources of disks, memory, firmware variables, wherever they stand in a domain
// or in a snapshot with its domains inside.
#pragma once

#include <map>
#include <string>

#include "domain/xml.h"

namespace varve {

// Every path that `moved` has becomes what it says; the number of places that changed. Nothing else does: an element
// that names no such file keeps its bytes.
size_t replace_file_paths(xml::Element& root, const std::map<std::string, std::string>& moved);

}  // namespace varve
