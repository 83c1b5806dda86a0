// A directory with one NAME.xml per thing: what definitions and snapshot metadata have in common.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "store/layout.h"

namespace varve {

struct XmlFile {
  std::string name;       // without ".xml"
  std::string host_path;  // of what is to be read; links followed
};

// What can be read in a directory (a root path), sorted by name; subdirectories, temporary files and whatever else does
// not end in ".xml" are passed over. A directory that does not exist is empty.
Result<std::vector<XmlFile>> xml_files_in(const Layout& layout, const std::string& directory);

}  // namespace varve
