#include "libvirt/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string_view>

namespace varve::libvirt {

namespace {

ErrorKind kind_of(const virError& error) {
  switch (error.code) {
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_NO_DOMAIN_SNAPSHOT:
      return ErrorKind::kNotFound;
    case VIR_ERR_DOM_EXIST:
      return ErrorKind::kAlreadyExists;
    case VIR_ERR_OPERATION_DENIED:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
      return ErrorKind::kPermission;
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_ARGUMENT_UNSUPPORTED:
    case VIR_ERR_OPERATION_UNSUPPORTED:
      return ErrorKind::kUnsupported;
    case VIR_ERR_OPERATION_INVALID:
    case VIR_ERR_INVALID_ARG:
    case VIR_ERR_XML_ERROR:
    case VIR_ERR_XML_DETAIL:
    case VIR_ERR_SNAPSHOT_REVERT_RISKY:
      return ErrorKind::kRefused;
    case VIR_ERR_RESOURCE_BUSY:
    case VIR_ERR_OPERATION_TIMEOUT:
      return ErrorKind::kInUse;
    case VIR_ERR_OPERATION_ABORTED:
      return ErrorKind::kInterrupted;
    case VIR_ERR_SYSTEM_ERROR:
      return error.int1 == EACCES || error.int1 == EPERM ? ErrorKind::kPermission : ErrorKind::kIo;
    default:
      return ErrorKind::kIo;
  }
}

// What may be otherwise when it is asked again: somebody else was at it, or the machine had no room. (A connection that
// was lost is often called an internal error, and so is much of what a document is refused for.)
bool is_passing(const virError& error) {
  switch (error.code) {
    case VIR_ERR_OPERATION_TIMEOUT:
    case VIR_ERR_RESOURCE_BUSY:
    case VIR_ERR_NO_MEMORY:
    case VIR_ERR_RPC:
      return true;
    case VIR_ERR_SYSTEM_ERROR:
      return error.int1 != ENOENT && error.int1 != EACCES && error.int1 != EPERM && error.int1 != EINVAL;
    default:
      return false;
  }
}

constexpr const char* kWhoMay =
    "members of the group `libvirt` may change it, or whoever polkit lets (org.libvirt.unix.manage); root always may";

// libvirt prints what goes wrong unless somebody else takes it.
void keep_quiet(void* /*unused*/, virErrorPtr /*error*/) {}

}  // namespace

Connection::Connection(std::string uri, Library library, Handle reader)
    : uri_(std::move(uri)), library_(library), reader_(std::move(reader)), writer_(nullptr, library_.virConnectClose) {}

Connection::~Connection() = default;

Error Connection::last_error(const std::string& what) const {
  const virErrorPtr said = library_.virGetLastError();
  if (said == nullptr) return make_error(ErrorKind::kIo, what);
  Error error = make_error(
      kind_of(*said), fmt::format("{}: {}", what, said->message == nullptr ? "no reason was given" : said->message));
  library_.virResetLastError();
  return error;
}

Error Connection::refusal(const std::string& what) const {
  const virErrorPtr said = library_.virGetLastError();
  const bool is_final = said != nullptr && !is_passing(*said);
  Error error = last_error(what);
  if (is_final && library_.virConnectIsAlive(handle()) == 1) {
    error.kind = ErrorKind::kRefused;
  } else if (error.kind == ErrorKind::kRefused) {
    error.kind = ErrorKind::kIo;
  }
  return error;
}

Result<std::unique_ptr<Connection>> Connection::open(const std::string& uri) {
  const Library library = TRY(load_library());
  if (library.virInitialize() < 0) return make_error(ErrorKind::kIo, "libvirt's library could not be set up");
  library.virSetErrorFunc(nullptr, keep_quiet);
  // Asks for a name and a password where the way there wants them; virConnectOpenReadOnly can't.
  Handle reader(library.virConnectOpenAuth(uri.c_str(), *library.default_authentication, VIR_CONNECT_RO),
                library.virConnectClose);
  const bool is_open = reader != nullptr;
  std::unique_ptr<Connection> connection(new Connection(uri, library, std::move(reader)));
  if (is_open) return connection;
  Error error = connection->last_error(fmt::format("{} can't be reached", uri));
  if (error.kind == ErrorKind::kIo) {
    error.notes.emplace_back(
        "is libvirtd running? `systemctl status libvirtd` says; its domains can be looked at without it, too: -c "
        "dir:/");
  } else if (error.kind == ErrorKind::kPermission) {
    error.notes.emplace_back(kWhoMay);
  }
  return error;
}

Result<void> Connection::allow_changes() {
  if (writer_) return {};
  Handle writer(library_.virConnectOpenAuth(uri_.c_str(), *library_.default_authentication, 0),
                library_.virConnectClose);
  if (writer) {
    writer_ = std::move(writer);
    return {};
  }
  Error error = last_error(fmt::format("{} can be looked at, but not changed", uri_));
  if (error.kind == ErrorKind::kPermission) error.notes.emplace_back(kWhoMay);
  return error;
}

std::string Connection::taken(char* text) const {
  if (text == nullptr) return {};
  std::string result = text;
  std::free(text);  // NOLINT(cppcoreguidelines-no-malloc): libvirt's rule
  return result;
}

Result<std::string> Connection::canonical_uri() const {
  char* uri = library_.virConnectGetURI(handle());
  if (uri == nullptr) return last_error(fmt::format("{} does not say what it is", uri_));
  return taken(uri);
}

Result<unsigned long> Connection::version() const {
  unsigned long version = 0;
  if (library_.virConnectGetLibVersion(handle(), &version) < 0) {
    return last_error(fmt::format("{} does not say which version it is", uri_));
  }
  return version;
}

Result<std::vector<DomainHandle>> Connection::domains() const {
  virDomainPtr* list = nullptr;
  const int count = library_.virConnectListAllDomains(handle(), &list, 0);
  if (count < 0) return last_error(fmt::format("the domains of {} can't be listed", uri_));
  std::vector<DomainHandle> domains;
  for (int i = 0; i < count; ++i) domains.emplace_back(list[i], library_.virDomainFree);
  std::free(static_cast<void*>(list));  // NOLINT(cppcoreguidelines-no-malloc): libvirt's rule
  std::ranges::sort(domains, {}, [&](const DomainHandle& domain) {
    return std::string_view(library_.virDomainGetName(domain.get()));
  });
  return domains;
}

Result<DomainHandle> Connection::domain(const std::string& name) const {
  DomainHandle domain(library_.virDomainLookupByName(handle(), name.c_str()), library_.virDomainFree);
  if (domain) return domain;
  return last_error(fmt::format("the domain '{}' can't be had from {}", name, uri_));
}

Result<std::string> Connection::definition_of(const DomainHandle& domain) const {
  return definition_with(domain, VIR_DOMAIN_XML_INACTIVE);
}

Result<std::string> Connection::present_definition_of(const DomainHandle& domain) const {
  return definition_with(domain, 0);
}

Result<std::string> Connection::definition_with(const DomainHandle& domain, unsigned flags) const {
  const std::string name = library_.virDomainGetName(domain.get());
  if (changes_allowed()) flags |= VIR_DOMAIN_XML_SECURE;
  char* text = library_.virDomainGetXMLDesc(domain.get(), flags);
  if (text == nullptr) return last_error(fmt::format("the definition of '{}' can't be read", name));
  return taken(text);
}

Result<std::vector<SnapshotHandle>> Connection::snapshots(const DomainHandle& domain) const {
  const std::string name = library_.virDomainGetName(domain.get());
  virDomainSnapshotPtr* list = nullptr;
  const int count = library_.virDomainListAllSnapshots(domain.get(), &list, 0);
  if (count < 0) return last_error(fmt::format("the snapshots of '{}' can't be listed", name));
  return owned(list, count);
}

Result<std::vector<SnapshotHandle>> Connection::children(const SnapshotHandle& snapshot) const {
  const std::string name = library_.virDomainSnapshotGetName(snapshot.get());
  virDomainSnapshotPtr* list = nullptr;
  const int count = library_.virDomainSnapshotListAllChildren(snapshot.get(), &list, 0);
  if (count < 0) return last_error(fmt::format("the children of snapshot '{}' can't be listed", name));
  return owned(list, count);
}

std::vector<SnapshotHandle> Connection::owned(virDomainSnapshotPtr* list, int count) const {
  std::vector<SnapshotHandle> snapshots;
  for (int i = 0; i < count; ++i) snapshots.emplace_back(list[i], library_.virDomainSnapshotFree);
  std::free(static_cast<void*>(list));  // NOLINT(cppcoreguidelines-no-malloc): libvirt's rule
  std::ranges::sort(snapshots, {}, [&](const SnapshotHandle& snapshot) {
    return std::string_view(library_.virDomainSnapshotGetName(snapshot.get()));
  });
  return snapshots;
}

Result<SnapshotHandle> Connection::snapshot(const DomainHandle& domain, const std::string& name) const {
  const std::string owner = library_.virDomainGetName(domain.get());
  SnapshotHandle snapshot(library_.virDomainSnapshotLookupByName(domain.get(), name.c_str(), 0),
                          library_.virDomainSnapshotFree);
  if (snapshot) return snapshot;
  return last_error(fmt::format("the snapshot '{}' of '{}' can't be had", name, owner));
}

Result<std::string> Connection::current_snapshot(const DomainHandle& domain) const {
  const SnapshotHandle current(library_.virDomainSnapshotCurrent(domain.get(), 0), library_.virDomainSnapshotFree);
  if (current) return std::string(library_.virDomainSnapshotGetName(current.get()));
  Error error = last_error("the current snapshot can't be had");
  if (error.kind == ErrorKind::kNotFound) return std::string();
  return error;
}

Result<std::string> Connection::document_of(const SnapshotHandle& snapshot) const {
  const std::string name = library_.virDomainSnapshotGetName(snapshot.get());
  char* text = library_.virDomainSnapshotGetXMLDesc(
      snapshot.get(), changes_allowed() ? static_cast<unsigned>(VIR_DOMAIN_SNAPSHOT_XML_SECURE) : 0U);
  if (text == nullptr) return last_error(fmt::format("the metadata of snapshot '{}' can't be read", name));
  return taken(text);
}

}  // namespace varve::libvirt
