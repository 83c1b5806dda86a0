// Whether a host is whole: metadata against images, images against themselves, chains, and what interrupted commands
// left. Looks only; what it finds can be given to a repair (operation/repair_domain.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "host/host.h"
#include "inspect/finding.h"
#include "inspect/verify_images.h"

namespace varve {

struct Examination {
  std::string domain;
  size_t snapshots = 0;  // files of metadata
  size_t images = 0;     // looked into, backing files among them
  std::vector<Finding> findings;
};

// Under the domain's shared lock. kNotFound: no such domain.
Result<Examination> verify_domain(Host& host, const std::string& domain, const ImageCheckProgress& progress = {});

// The same for whoever holds the lock.
Result<Examination> examine_domain(const Host& host, const DomainDocument& definition,
                                   const ImageCheckProgress& progress = {});

// What belongs to no domain that is defined: definitions that can't be read, snapshots without a domain, records of the
// journal that could not be carried out, temporary files, locks that nothing needs.
Result<std::vector<Finding>> verify_host(const Host& host);

}  // namespace varve
