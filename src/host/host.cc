#include "host/host.h"

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "domain/names.h"
#include "host/choose_host.h"

namespace varve {

namespace {

// As libvirt's packages make them: images can be reached by name but not listed by everybody.
constexpr struct {
  std::string (*path)();
  unsigned mode;
} kDirectories[] = {
    {Layout::definitions_directory, 0755}, {Layout::snapshots_directory, 0755}, {Layout::images_directory, 0711},
    {Layout::nvram_directory, 0755},       {Layout::save_directory, 0755},
};

}  // namespace

Host::Host(Layout layout, HostEvents events)
    : layout_(std::move(layout)),
      events_(std::move(events)),
      definitions_(layout_),
      metadata_(layout_),
      journal_(layout_, events_.step) {}

Result<std::unique_ptr<Host>> Host::open(const std::string& root, HostEvents events) {
  Layout layout = TRY(Layout::open(root));
  std::unique_ptr<Host> host(new Host(std::move(layout), std::move(events)));
  host->recover_all();
  return host;
}

Result<std::unique_ptr<Host>> Host::open_or_create(const std::string& root, HostEvents events) {
  TRY(make_directories(root, 0755));
  std::unique_ptr<Host> host = TRY(open(root, std::move(events)));
  TRY(host->check_writable());
  for (const auto& [path, mode] : kDirectories) TRY(host->layout_.make_directories(path(), mode));
  return host;
}

Result<void> Host::check_writable() const {
  for (const char* run : {"/run", "/var/run"}) {
    const auto directory = layout_.resolve(run);
    if (!directory) continue;
    if (const auto socket = answering_libvirt_socket(*directory)) {
      return make_error(ErrorKind::kRefused,
                        fmt::format("a libvirtd runs on {} (it answers on {}), and its files are its own",
                                    layout_.root(), *socket))
          .with_note(
              "stop it first (`systemctl stop libvirtd.socket libvirtd`), or change its domains with virsh; "
              "nothing was changed");
    }
  }
  return {};
}

void Host::recover_all() {
  const auto tell = [&](const Error& error) {
    if (events_.not_recovered) events_.not_recovered(error);
  };
  const auto domains = journal_.domains();
  if (!domains) return tell(domains.error());
  for (const std::string& domain : *domains) {
    if (const auto usable = check_domain_name(domain); !usable) {
      tell(make_error(ErrorKind::kCorrupt,
                      fmt::format("the journal record {} belongs to no domain", journal_.path_of(domain))));
      continue;
    }
    // A lock that somebody has belongs to the very command that wrote the record, or to one that finishes it now.
    const auto lock = DomainLock::try_acquire(layout_, domain, DomainLock::Mode::kExclusive, events_.command);
    if (!lock) {
      tell(lock.error());
    } else if (*lock) {
      if (const auto recovered = recover(domain); !recovered) tell(recovered.error());
    }
  }
}

Result<void> Host::recover(const std::string& domain) {
  if (!TRY(journal_.read(domain))) {
    TRY(journal_.recover(domain));  // a torn temporary record may be there
    return {};
  }
  if (auto writable = check_writable(); !writable) {
    return std::move(writable).error().context(
        fmt::format("an interrupted command on '{}' can't be finished now", domain));
  }
  const Recovery recovery = TRY(journal_.recover(domain));
  if (recovery.outcome != Recovery::Outcome::kNothingToDo && events_.recovered) events_.recovered(recovery);
  return {};
}

Result<DomainLock> Host::lock(const std::string& domain, DomainLock::Mode mode) {
  TRY(check_domain_name(domain));
  const auto waiting = [&](const std::string& holder) {
    if (events_.waiting) events_.waiting(domain, holder);
  };
  for (;;) {
    DomainLock lock = TRY(DomainLock::acquire(layout_, domain, mode, events_.command, waiting));
    if (!TRY(journal_.read(domain))) return lock;
    // Whoever had the lock before ended in the middle of its work.
    if (mode == DomainLock::Mode::kExclusive) {
      TRY(recover(domain));
      return lock;
    }
    {
      const DomainLock released = std::move(lock);
    }
    const DomainLock exclusive =
        TRY(DomainLock::acquire(layout_, domain, DomainLock::Mode::kExclusive, events_.command, waiting));
    TRY(recover(domain));
  }
}

Result<LockedDomain> Host::open_domain(const std::string& domain, DomainLock::Mode mode) {
  TRY(check_domain_name(domain));
  TRY(definitions_.load(domain));  // before a lock file is made for it
  DomainLock held = TRY(lock(domain, mode));
  DomainDocument definition = TRY(definitions_.load(domain));  // it may have changed while this command waited
  return LockedDomain{.lock = std::move(held), .definition = std::move(definition)};
}

}  // namespace varve
