#include "store/xml_directory.h"

#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "domain/names.h"

namespace varve {

namespace {

constexpr std::string_view kSuffix = ".xml";

}  // namespace

Result<std::vector<XmlFile>> xml_files_in(const Layout& layout, const std::string& directory) {
  std::vector<XmlFile> files;
  auto resolved = layout.resolve(directory);
  if (!resolved) {
    if (resolved.error().kind == ErrorKind::kNotFound) return files;
    return std::move(resolved).error();
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(resolved->c_str()), &::closedir);
  if (!open) return system_error(errno, "reading the directory " + *resolved, *resolved);
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(open.get());
    if (entry == nullptr) break;
    const std::string_view file_name = entry->d_name;
    if (!file_name.ends_with(kSuffix) || entry->d_type == DT_DIR) continue;
    const std::string_view name = file_name.substr(0, file_name.size() - kSuffix.size());
    if (!is_file_name(name)) continue;
    std::string host_path = *resolved + "/" + std::string(file_name);
    if (entry->d_type == DT_LNK) {
      // One that leads nowhere is still a file that somebody will miss: reading it says so.
      host_path = layout.resolve(directory + "/" + std::string(file_name)).value_or(std::move(host_path));
    }
    files.push_back({std::string(name), std::move(host_path)});
  }
  if (errno != 0) return system_error(errno, "reading the directory " + *resolved, *resolved);
  std::sort(files.begin(), files.end(), [](const XmlFile& a, const XmlFile& b) { return a.name < b.name; });
  return files;
}

}  // namespace varve
