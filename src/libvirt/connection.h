// A connection to a libvirtd, and what is reached through it. It is opened for looking; what changes something asks for
// more first (allow_changes), so that who may only look need not be asked by polkit.
//
// Not synchronised. Handles must not outlive the connection.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "libvirt/library.h"

namespace varve::libvirt {

using DomainHandle = std::unique_ptr<virDomain, decltype(&::virDomainFree)>;
using SnapshotHandle = std::unique_ptr<virDomainSnapshot, decltype(&::virDomainSnapshotFree)>;

class Connection {
 public:
  // kNotFound: nothing answers there. kPermission: it does not let us in.
  static Result<std::unique_ptr<Connection>> open(const std::string& uri);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  // As it was asked for: "qemu:///system".
  const std::string& uri() const { return uri_; }
  // What libvirt makes of it: an alias has a URI of its own behind it.
  Result<std::string> canonical_uri() const;
  // 9000000 for 9.0.0.
  Result<unsigned long> version() const;

  // Once is enough. kPermission, with the remedy.
  Result<void> allow_changes();
  // Documents are read with their secrets (passwords of displays) once changes are allowed: what is written back must
  // have them. What is only shown has not.
  bool changes_allowed() const { return writer_ != nullptr; }

  Result<std::vector<DomainHandle>> domains() const;  // sorted by name
  // kNotFound.
  Result<DomainHandle> domain(const std::string& name) const;
  // The definition that the domain starts with next time; the one that it runs with, where it runs.
  Result<std::string> definition_of(const DomainHandle& domain) const;
  Result<std::string> present_definition_of(const DomainHandle& domain) const;

  // Sorted by name.
  Result<std::vector<SnapshotHandle>> snapshots(const DomainHandle& domain) const;
  Result<std::vector<SnapshotHandle>> children(const SnapshotHandle& snapshot) const;
  // kNotFound.
  Result<SnapshotHandle> snapshot(const DomainHandle& domain, const std::string& name) const;
  // Empty: none is current.
  Result<std::string> current_snapshot(const DomainHandle& domain) const;
  Result<std::string> document_of(const SnapshotHandle& snapshot) const;

  const Library& library() const { return library_; }
  virConnectPtr handle() const { return writer_ ? writer_.get() : reader_.get(); }
  // What libvirt said last, after `what`: "the domain 'a' can't be read: …". Every call into the library, even one for
  // a name, makes it forget.
  Error last_error(const std::string& what) const;
  // The same of a document that was not taken: kRefused where asking again would not help, another kind where somebody
  // else was at it, the disk is full or the connection lost.
  Error refusal(const std::string& what) const;

 private:
  using Handle = std::unique_ptr<virConnect, decltype(&::virConnectClose)>;
  Connection(std::string uri, Library library, Handle reader);
  std::string taken(char* text) const;
  std::vector<SnapshotHandle> owned(virDomainSnapshotPtr* list, int count) const;
  Result<std::string> definition_with(const DomainHandle& domain, unsigned flags) const;

  std::string uri_;
  Library library_;
  Handle reader_;
  Handle writer_;
};

}  // namespace varve::libvirt
