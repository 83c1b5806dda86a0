// Makes a definition known to the host, or changes it.
#pragma once

#include <string>

#include "domain/schema.h"
#include "operation/operation.h"

namespace varve {

// `text` is domain XML, `document_name` what messages call it. Checked against the schema where one is installed; the
// plan's notes say so where none is. A domain of that name is changed if the UUID is its own or is not said.
Result<Operation> plan_define_domain(Host& host, const std::string& text, const std::string& document_name,
                                     SchemaSet& schemas);

class Preflight;
// Refuses where another domain of the host has the definition's UUID, with what to do about it.
void check_uuid(const Host& host, const DomainDocument& definition, Preflight& preflight, const std::string& remedy);

// What is wrong with the definition on this host: a UUID that another domain has, an image outside ROOT. Refusals go to
// `preflight`, the rest to the plan's notes.
void check_definition(const Host& host, const DomainDocument& definition, Preflight& preflight, Plan& plan);

}  // namespace varve
