// A host of the kind dir:ROOT: a directory tree in libvirt's layout, without a daemon. Gives access to what is in it,
// under the locks that belong to it; a domain that is locked through a host has no unfinished operation.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "domain/domain_document.h"
#include "store/definition_store.h"
#include "store/domain_lock.h"
#include "store/journal.h"
#include "store/layout.h"
#include "store/metadata_store.h"
#include "store/step_hook.h"

namespace varve {

// What a host tells whoever opened it while it works. All may be empty.
struct HostEvents {
  std::string command;  // what other commands are told that wait for this one: "snapshot create centos7"
  std::function<void(const std::string& domain, const std::string& holder)> waiting;
  std::function<void(const Recovery&)> recovered;   // an interrupted operation has been finished or undone
  std::function<void(const Error&)> not_recovered;  // one could not be
  StepHook step;
};

struct LockedDomain {
  DomainLock lock;
  DomainDocument definition;
};

class Host {
 public:
  // kNotFound: ROOT does not exist. Finishes what interrupted commands left, where no running command has it; what
  // can't be finished is told through the events, and fails whoever then locks that domain.
  static Result<std::unique_ptr<Host>> open(const std::string& root, HostEvents events);
  // The same for a ROOT that may have to be made first, with libvirt's directories in it.
  static Result<std::unique_ptr<Host>> open_or_create(const std::string& root, HostEvents events);

  const Layout& layout() const { return layout_; }
  const DefinitionStore& definitions() const { return definitions_; }
  const MetadataStore& metadata() const { return metadata_; }
  Journal& journal() { return journal_; }
  const Journal& journal() const { return journal_; }

  // Waits for the domain's lock, and finishes an interrupted operation on it first. The domain need not be defined.
  Result<DomainLock> lock(const std::string& domain, DomainLock::Mode mode);

  // The same for a domain that has to be defined. kNotFound leaves no trace.
  Result<LockedDomain> open_domain(const std::string& domain, DomainLock::Mode mode);

  // kRefused while a libvirtd runs on this tree: its files are its own.
  Result<void> check_writable() const;

 private:
  Host(Layout layout, HostEvents events);
  void recover_all();
  // With the exclusive lock held.
  Result<void> recover(const std::string& domain);

  Layout layout_;
  HostEvents events_;
  DefinitionStore definitions_;
  MetadataStore metadata_;
  Journal journal_;
};

}  // namespace varve
