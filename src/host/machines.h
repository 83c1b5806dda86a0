// Whoever runs a host's machines, and does what can only be done there: snapshots of running ones, with their memory,
// and of those whose images can't be opened from here. Each call is one operation of its own, whole or not at all as
// far as its doer promises that; nothing of it is in the journal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "domain/domain_document.h"
#include "domain/snapshot_document.h"

namespace varve {

// Looks on while something long is done. Both may be empty.
struct Watch {
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes of memory
  std::function<bool()> cancelled;                              // asked now and then; true: stop where that can be
};

// What a machine does after a revert; kAsThen: what it did when the snapshot was taken.
enum class AfterRevert : uint8_t { kAsThen, kRunning, kPaused };

struct MachineSnapshot {
  std::string document;     // domainsnapshot XML: name, description, memory, disks
  bool disk_only = false;   // without memory: as after a power cut, or a flush of the guest's file systems
  bool live = false;        // the machine goes on while its memory is written; external memory only
  bool quiesce = false;     // the guest agent freezes the file systems meanwhile
  int quiesce_seconds = 0;  // not longer than that; 0: until it is done
};

class Machines {
 public:
  virtual ~Machines() = default;

  // Whether the files that definitions name are files here.
  virtual bool has_images_here() const = 0;
  // 9000000 for 9.0.0: what it can do depends on that.
  virtual Result<unsigned long> version() const = 0;
  // With what the machine runs now; that of next time where it does not run.
  virtual Result<DomainDocument> present_definition(const std::string& domain) const = 0;
  virtual Result<size_t> checkpoints(const std::string& domain) const = 0;

  // It becomes the current one.
  virtual Result<void> create_snapshot(const std::string& domain, const MachineSnapshot& snapshot,
                                       const Watch& watch) = 0;
  virtual Result<void> revert(const std::string& domain, const std::string& name, AfterRevert after,
                              const Watch& watch) = 0;
  virtual Result<void> remove(const std::string& domain, const std::string& name, bool children,
                              const Watch& watch) = 0;
};

}  // namespace varve
