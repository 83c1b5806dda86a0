#include "domain/file_paths.h"

#include <algorithm>
#include <iterator>

namespace varve {

// By the form, not by a list of places: `file` is what libvirt calls a path to a file in every element that has one
// (source, memory), and backing stores, mirrors and disks of a revert nest freely.
size_t replace_file_paths(xml::Element& root, const std::map<std::string, std::string>& moved) {
  size_t changed = 0;
  if (const auto file = root.attribute("file")) {
    if (const auto found = moved.find(*file); found != moved.end() && found->second != *file) {
      root.set_attribute("file", found->second);
      ++changed;
    }
  }
  static constexpr const char* kTextPaths[] = {"nvram", "kernel", "initrd", "dtb"};  // of <os>
  if (std::ranges::find(kTextPaths, root.name()) != std::end(kTextPaths) && root.children().empty()) {
    if (const auto found = moved.find(root.text()); found != moved.end() && found->first != found->second) {
      root.set_text(found->second);
      ++changed;
    }
  }
  for (xml::Element* child : root.children()) changed += replace_file_paths(*child, moved);
  return changed;
}

}  // namespace varve
