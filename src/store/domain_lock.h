// The lock on one domain, an flock on var/lib/varve/lock/DOMAIN (docs/locking.md): readers share it, whoever changes
// something has it alone. It keeps two varve commands apart; QEMU is kept out by the images' own locks.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "store/layout.h"

namespace varve {

class DomainLock {
 public:
  enum class Mode { kShared, kExclusive };
  // Called once before waiting, with whom it waits for ("pid 4711, `varve snapshot create centos7`").
  using WaitNotice = std::function<void(const std::string& holder)>;

  // Waits until the lock is free. `command` is what others are told while this process has it exclusively. A reader of
  // a tree that can't be written gets a lock in name only: a tree on a read-only file system has no writers.
  static Result<DomainLock> acquire(const Layout& layout, const std::string& domain, Mode mode,
                                    const std::string& command, const WaitNotice& waiting = {});
  // Nothing when somebody has it.
  static Result<std::optional<DomainLock>> try_acquire(const Layout& layout, const std::string& domain, Mode mode,
                                                       const std::string& command);

  // Removes the file of a lock that nobody has, for a domain that is gone. False when somebody has it.
  static Result<bool> remove_if_free(const Layout& layout, const std::string& domain);

  DomainLock(DomainLock&&) noexcept = default;
  DomainLock& operator=(DomainLock&& other) noexcept;
  ~DomainLock();

  Mode mode() const { return mode_; }

 private:
  DomainLock(UniqueFd fd, Mode mode) : fd_(std::move(fd)), mode_(mode) {}
  void release();

  UniqueFd fd_;
  Mode mode_;
};

}  // namespace varve
