#include "host/host.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "domain/names.h"
#include "host/image_needs.h"

namespace varve {

const char* name_of(DomainState state) {
  switch (state) {
    case DomainState::kShutOff:
      return "shut off";
    case DomainState::kRunning:
      return "running";
    case DomainState::kPaused:
      return "paused";
    case DomainState::kSuspended:
      return "pmsuspended";
  }
  return "unknown";
}

Host::Host(Layout layout, HostEvents events, Stores stores)
    : layout_(std::move(layout)),
      events_(std::move(events)),
      stores_(std::move(stores)),
      journal_(layout_, events_.step, stores_.writer) {}

Result<void> Host::check_images_are_here() const {
  if (machines() == nullptr || machines()->has_images_here()) return {};
  return make_error(ErrorKind::kUnsupported,
                    "the images are files of another machine, which can't be looked into from "
                    "here")
      .with_note("run varve there, e.g. `ssh HOST varve …`");
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
      told_.insert(domain);
    } else if (*lock) {
      if (const auto recovered = recover(domain); !recovered) {
        tell(recovered.error());
        told_.insert(domain);
      }
    }
  }
}

namespace {

// As libvirt compares them: with or without hyphens, in either case.
bool is_same_uuid(std::string one, std::string other) {
  for (std::string* uuid : {&one, &other}) {
    std::erase_if(*uuid, [](char c) { return c == '-' || c == ' '; });
    std::ranges::transform(*uuid, uuid->begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  }
  return one == other;
}

}  // namespace

Result<bool> Host::is_another_domain(const JournalRecord& record) const {
  if (record.domain_uuid.empty() || (record.images.empty() && record.changes.empty())) return false;
  const auto present = definitions().load(record.domain);
  if (!present && present.error().kind != ErrorKind::kNotFound) return present.error();
  return present && !present->uuid().empty() && !is_same_uuid(present->uuid(), record.domain_uuid);
}

std::vector<SparedImage> Host::spared_images(const JournalRecord& record) const {
  std::vector<SparedImage> spared;
  if (record.removed_images.empty()) return spared;
  const auto needs = images_needed(*this, record.removes_definition() ? record.domain : "");
  for (const std::string& path : record.removed_images) {
    if (!needs) {
      spared.push_back({.path = path, .reason = needs.error().message});
    } else if (const auto resolved = layout_.resolve(path); resolved && needs->contains(*resolved)) {
      spared.push_back({.path = path, .reason = fmt::format("domain '{}' needs it now", needs->at(*resolved).domain)});
    }
  }
  return spared;
}

Result<void> Host::recover(const std::string& domain) {
  const auto record = TRY(journal_.read(domain));
  if (!record) {
    TRY(journal_.recover(domain));  // a torn temporary record may be there
    return {};
  }
  if (auto writable = check_writable(); !writable) {
    return std::move(writable).error().context(
        fmt::format("an interrupted command on '{}' can't be finished now", domain));
  }
  const Recovery recovery = TRY(is_another_domain(*record)) ? TRY(journal_.abandon(*record))
                                                            : TRY(journal_.recover(domain, spared_images(*record)));
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
    if (const auto record = journal_.read(domain); record && !*record) return lock;
    // Whoever had the lock before ended in the middle of its work.
    if (mode == DomainLock::Mode::kExclusive) {
      TRY(recover(domain));
      return lock;
    }
    // Who only looks goes on where it can't be finished, and has been told.
    if (told_.contains(domain)) return lock;
    {
      const DomainLock released = std::move(lock);
    }
    const auto finish = [&]() -> Result<void> {
      const DomainLock exclusive =
          TRY(DomainLock::acquire(layout_, domain, DomainLock::Mode::kExclusive, events_.command, waiting));
      return recover(domain);
    };
    if (const auto finished = finish(); !finished) {
      if (events_.not_recovered) events_.not_recovered(finished.error());
      told_.insert(domain);
    }
  }
}

Result<LockedDomain> Host::open_domain(const std::string& domain, DomainLock::Mode mode) {
  TRY(check_domain_name(domain));
  TRY(definitions().load(domain));  // before a lock file is made for it
  DomainLock held = TRY(lock(domain, mode));
  DomainDocument definition = TRY(definitions().load(domain));  // it may have changed while this command waited
  return LockedDomain{.lock = std::move(held), .definition = std::move(definition)};
}

}  // namespace varve
