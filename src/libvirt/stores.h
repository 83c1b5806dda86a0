// Definitions and snapshot metadata as a libvirtd has them. It keeps them in files, too, which are its own while it
// runs.
#pragma once

#include <string>
#include <vector>

#include "libvirt/connection.h"
#include "store/definition_store.h"
#include "store/document_writer.h"
#include "store/metadata_store.h"

namespace varve::libvirt {

// What domains start with next time (for a running one, that may differ from what it runs with).
class Definitions final : public DefinitionStore {
 public:
  explicit Definitions(const Connection& connection) : connection_(connection) {}
  Result<std::vector<std::string>> names() const override;
  Result<Listing> list() const override;
  Result<DomainDocument> load(const std::string& name) const override;
  Result<bool> exists(const std::string& name) const override;

 private:
  const Connection& connection_;
};

// A domain that is not there has no snapshots.
class Metadata final : public MetadataStore {
 public:
  explicit Metadata(const Connection& connection) : connection_(connection) {}
  Result<std::vector<std::string>> names(const std::string& domain) const override;
  Result<std::vector<std::string>> domains() const override;
  Result<Listing> list(const std::string& domain) const override;
  Result<Overview> overview(const std::string& domain) const override;
  Result<Offspring> offspring(const std::string& domain, const std::string& name) const override;
  Result<SnapshotDocument> load(const std::string& domain, const std::string& name) const override;
  Result<bool> exists(const std::string& domain, const std::string& name) const override;

 private:
  const Connection& connection_;
};

// Hands definitions and metadata to the libvirtd (REDEFINE); everything else is a file of this process's own.
// The connection must allow changes by the time something is written.
class Writer final : public DocumentWriter {
 public:
  Writer(const Connection& connection, Layout layout) : connection_(connection), layout_(std::move(layout)) {}
  Result<void> write(const FileChange& change) override;
  bool writes_file(const std::string& root_path) const override;

 private:
  Result<void> write_definition(const std::string& domain, const FileChange& change) const;
  Result<void> write_metadata(const std::string& domain, const std::string& name, const FileChange& change) const;

  const Connection& connection_;
  Layout layout_;
};

}  // namespace varve::libvirt
