// Puts back what a host has lost of a domain, from files that are still there: its definition, the metadata of its
// snapshots, and metadata for points in its images that no document knows. What the host has stays as it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operation/operation.h"
#include "store/definition_store.h"
#include "store/metadata_store.h"

namespace varve {

struct RecoverDomainRequest {
  std::string domain;
  uint64_t now_sec = 0;  // Unix time, for what is written into descriptions
};

// Where it is taken from: another host's, or the host's own files, whether or not a daemon has loaded them.
struct RecoverySource {
  const DefinitionStore& definitions;
  const MetadataStore& metadata;
  const Layout& layout;
};

struct RecoverDomain {
  Operation operation;
  bool defines = false;               // the domain was not defined
  std::vector<std::string> put_back;  // snapshots, parents first
  std::vector<std::string> adopted;   // the same, made up for points that nobody knew
  bool is_needed() const { return defines || !put_back.empty() || !adopted.empty(); }
};

// kNotFound: nobody knows such a domain. kRefused: an image is not there, or another domain has its UUID.
Result<RecoverDomain> plan_recover_domain(Host& host, const RecoverySource& source,
                                          const RecoverDomainRequest& request);

}  // namespace varve
