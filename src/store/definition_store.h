// The definitions below ROOT: etc/libvirt/qemu/NAME.xml. Reads files; changes are handed out as FileChanges, which the
// journal collects, or written at once by save() and remove(). The caller holds the domain lock.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "store/file_change.h"
#include "store/layout.h"

namespace varve {

class DefinitionStore {
 public:
  explicit DefinitionStore(Layout layout) : layout_(std::move(layout)) {}

  // The names of all definitions, sorted; from file names alone. No directory: no definitions. networks/ and autostart/
  // are not looked at.
  Result<std::vector<std::string>> names() const;

  struct Listing {
    std::vector<DomainDocument> domains;  // sorted by name
    std::vector<Error> problems;          // files that could not be read or parsed; they are left alone
  };
  Result<Listing> list() const;

  // kNotFound: no such domain; the notes say which there are. A file whose <name> is another one is kCorrupt.
  Result<DomainDocument> load(const std::string& name) const;
  Result<bool> exists(const std::string& name) const;

  FileChange saving(const DomainDocument& domain) const;
  FileChange removing(const std::string& name) const;
  Result<void> save(const DomainDocument& domain) const { return apply(layout_, saving(domain)); }
  Result<void> remove(const std::string& name) const { return apply(layout_, removing(name)); }

 private:
  Layout layout_;
};

}  // namespace varve
