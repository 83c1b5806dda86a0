#include "operation/define_domain.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "operation/preflight.h"

namespace varve {

namespace {

// Paths in a definition are paths as seen from ROOT. One that is there only as seen from here was meant otherwise.
void check_disk(const Host& host, const Disk& disk, Preflight& preflight, Plan& plan) {
  if (!disk.is_local_file() || disk.source.empty()) return;
  const auto inside = host.layout().resolve(disk.source);
  if (inside) return;
  struct stat status;
  if (inside.error().kind == ErrorKind::kNotFound && host.layout().root() != "/" &&
      ::stat(disk.source.c_str(), &status) == 0) {
    const std::string directory = host.layout().shown(Layout::images_directory());
    const std::string name = disk.source.substr(disk.source.find_last_of('/') + 1);
    preflight.refuse(
        make_error(ErrorKind::kRefused,
                   fmt::format("disk {} is {}, which is outside of {}", disk.target, disk.source, host.layout().root()))
            .with_note(fmt::format("bring it in with `cp --sparse=always '{}' '{}/'`, and call it {}/{} in the "
                                   "definition: paths in it are seen from {}",
                                   disk.source, directory, Layout::images_directory(), name, host.layout().root())));
    return;
  }
  if (inside.error().kind == ErrorKind::kNotFound) {
    plan.notes.push_back(fmt::format("disk {}: there is no {} yet", disk.target, host.layout().shown(disk.source)));
    return;
  }
  preflight.refuse(inside.error());
}

}  // namespace

void check_uuid(const Host& host, const DomainDocument& definition, Preflight& preflight, const std::string& remedy) {
  if (definition.uuid().empty()) return;
  const auto listing = preflight.accept(host.definitions().list());
  if (!listing) return;
  for (const DomainDocument& other : listing->domains) {
    if (other.name() == definition.name() || other.uuid() != definition.uuid()) continue;
    preflight.refuse(make_error(ErrorKind::kAlreadyExists,
                                fmt::format("domain '{}' has the UUID {} already", other.name(), other.uuid()))
                         .with_note(remedy));
  }
}

void check_definition(const Host& host, const DomainDocument& definition, Preflight& preflight, Plan& plan) {
  check_uuid(host, definition, preflight, "leave <uuid> out, and a new one is made up");
  for (const Disk& disk : definition.disks()) check_disk(host, disk, preflight, plan);
}

Result<Operation> plan_define_domain(Host& host, const std::string& text, const std::string& document_name,
                                     SchemaSet& schemas) {
  DomainDocument definition = TRY(DomainDocument::parse(text, document_name));
  const SchemaOutcome outcome = TRY(schemas.validate(SchemaKind::kDomain, text, document_name));
  TRY(host.check_writable());

  const std::string name = definition.name();
  const std::string failure = fmt::format("domain '{}' is not defined", name);
  DomainLock lock = TRY(host.lock(name, DomainLock::Mode::kExclusive));
  Operation operation(host, std::move(lock), name, fmt::format("define '{}'", name), failure);
  operation.set_command(fmt::format("vm define {}", document_name));
  if (outcome == SchemaOutcome::kNotInstalled) {
    operation.plan().notes.emplace_back(
        "libvirt's schemas are not installed: the definition was not checked against "
        "them");
  } else {
    operation.plan().checks.push_back(fmt::format("{} is valid domain XML", document_name));
  }

  Preflight preflight(failure);
  if (TRY(host.definitions().exists(name))) {
    const DomainDocument present = TRY(host.definitions().load(name));
    if (definition.uuid().empty()) {
      definition.set_uuid(present.uuid());
    } else if (!present.uuid().empty() && present.uuid() != definition.uuid()) {
      preflight.refuse(make_error(ErrorKind::kAlreadyExists,
                                  fmt::format("there is a domain of that name, with the UUID {}", present.uuid()))
                           .with_note(fmt::format("give the new one another name, or remove the old one with `varve "
                                                  "vm undefine '{}'`",
                                                  name)));
    }
  }
  if (definition.uuid().empty()) definition.set_uuid(new_uuid());
  check_definition(host, definition, preflight, operation.plan());
  TRY(std::move(preflight).finish());
  operation.set_uuid(definition.uuid());
  operation.add({host.definitions().saving(definition)});
  return operation;
}

}  // namespace varve
