#include "store/definition_store.h"

#include <fmt/format.h>

#include "domain/names.h"
#include "store/xml_directory.h"

namespace varve {

namespace {

Result<DomainDocument> load_file(const XmlFile& file) {
  DomainDocument domain = TRY(DomainDocument::load(file.host_path));
  if (domain.name() != file.name) {
    Error error = make_error(ErrorKind::kCorrupt,
                             fmt::format("{} defines a domain of another name, '{}'", file.host_path, domain.name()));
    error.path = file.host_path;
    return error;
  }
  return domain;
}

}  // namespace

Result<std::vector<std::string>> DefinitionFiles::names() const {
  std::vector<std::string> names;
  for (XmlFile& file : TRY(xml_files_in(layout_, Layout::definitions_directory()))) {
    names.push_back(std::move(file.name));
  }
  return names;
}

Result<DefinitionStore::Listing> DefinitionFiles::list() const {
  Listing listing;
  for (const XmlFile& file : TRY(xml_files_in(layout_, Layout::definitions_directory()))) {
    auto domain = load_file(file);
    if (domain) {
      listing.domains.push_back(*std::move(domain));
    } else {
      listing.problems.push_back(std::move(domain).error());
    }
  }
  return listing;
}

Result<bool> DefinitionFiles::exists(const std::string& name) const {
  if (!is_file_name(name)) return false;
  const auto path = layout_.resolve(Layout::definition(name));
  if (path) return true;
  if (path.error().kind == ErrorKind::kNotFound) return false;
  return path.error();
}

Result<DomainDocument> DefinitionFiles::load(const std::string& name) const {
  if (!is_file_name(name)) TRY(check_domain_name(name));  // says what is wrong with it
  const auto path = layout_.resolve(Layout::definition(name));
  if (path) return load_file({name, *path});
  if (path.error().kind != ErrorKind::kNotFound) return path.error();
  Error error = make_error(ErrorKind::kNotFound, fmt::format("there is no domain '{}' in {}", name,
                                                             layout_.shown(Layout::definitions_directory())));
  error.path = layout_.shown(Layout::definition(name));
  if (layout_.resolve(Layout::increment_directory(name))) {
    error.notes.push_back(
        fmt::format("this is an incremental export of it, which is no host: `varve vm import '{}' '{}'` "
                    "puts the machine together",
                    layout_.root(), name));
    return error;
  }
  if (const auto others = names()) error.notes.push_back(there_are(*others));
  return error;
}

FileChange DefinitionStore::saving(const DomainDocument& domain) {
  return {Layout::definition(domain.name()), domain.to_file()};
}

FileChange DefinitionStore::removing(const std::string& name) {
  return {Layout::definition(name), std::nullopt};
}

}  // namespace varve
