// The definitions of a host's domains. Reads; changes are handed out as FileChanges, which the journal collects and a
// DocumentWriter makes true. The caller holds the domain lock.
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
  virtual ~DefinitionStore() = default;

  // The names of all definitions, sorted.
  virtual Result<std::vector<std::string>> names() const = 0;

  struct Listing {
    std::vector<DomainDocument> domains;  // sorted by name
    std::vector<Error> problems;          // definitions that could not be read or parsed; they are left alone
  };
  virtual Result<Listing> list() const = 0;

  // kNotFound: no such domain; the notes say which there are.
  virtual Result<DomainDocument> load(const std::string& name) const = 0;
  virtual Result<bool> exists(const std::string& name) const = 0;

  static FileChange saving(const DomainDocument& domain);
  static FileChange removing(const std::string& name);
};

// The files below ROOT: etc/libvirt/qemu/NAME.xml.
class DefinitionFiles final : public DefinitionStore {
 public:
  explicit DefinitionFiles(Layout layout) : layout_(std::move(layout)) {}

  // From file names alone. No directory: no definitions. networks/ and autostart/ are not looked at.
  Result<std::vector<std::string>> names() const override;
  Result<Listing> list() const override;
  // A file whose <name> is another one is kCorrupt.
  Result<DomainDocument> load(const std::string& name) const override;
  Result<bool> exists(const std::string& name) const override;

  Result<void> save(const DomainDocument& domain) const { return apply(layout_, saving(domain)); }
  Result<void> remove(const std::string& name) const { return apply(layout_, removing(name)); }

 private:
  Layout layout_;
};

}  // namespace varve
