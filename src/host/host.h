// Where domains live: a directory tree in libvirt's layout (directory_host.h), or what a libvirtd has. Gives access to
// what is in it, under the locks that belong to it; a domain that is locked exclusively through a host has no
// unfinished operation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "base/result.h"
#include "domain/domain_document.h"
#include "host/machines.h"
#include "store/definition_store.h"
#include "store/document_writer.h"
#include "store/domain_lock.h"
#include "store/journal.h"
#include "store/layout.h"
#include "store/metadata_store.h"
#include "store/step_hook.h"

namespace varve {

// What a host tells whoever opened it while it works. All may be empty.
struct HostEvents {
  std::string command;  // what other commands are told that wait for this one: "snapshot create centos7"
  std::function<void(const std::string& domain, const std::string& holder)> waiting;
  std::function<void(const Recovery&)> recovered;   // an interrupted operation has been finished or undone
  std::function<void(const Error&)> not_recovered;  // one could not be
  StepHook step;
};

enum class DomainState : uint8_t { kShutOff, kRunning, kPaused, kSuspended };

const char* name_of(DomainState state);  // as virsh says it: "shut off", "running", "paused", "pmsuspended"

struct LockedDomain {
  DomainLock lock;
  DomainDocument definition;
};

// A file of the host as a storage pool lists it: what virt-manager shows.
struct StorageVolume {
  std::string pool;
  std::string name;
};

class Host {
 public:
  virtual ~Host() = default;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  const Layout& layout() const { return layout_; }
  const DefinitionStore& definitions() const { return *stores_.definitions; }
  const MetadataStore& metadata() const { return *stores_.metadata; }
  DocumentWriter& writer() { return *stores_.writer; }
  const DocumentWriter& writer() const { return *stores_.writer; }
  Journal& journal() { return journal_; }
  const Journal& journal() const { return journal_; }

  // Waits for the domain's lock, and finishes an interrupted operation on it first. The domain need not be defined.
  // An operation that can't be finished now fails who wants to change something, and is told (not_recovered) to who
  // only looks.
  Result<DomainLock> lock(const std::string& domain, DomainLock::Mode mode);

  // The same for a domain that has to be defined. kNotFound leaves no trace.
  Result<LockedDomain> open_domain(const std::string& domain, DomainLock::Mode mode);

  // Why nothing may be changed here; asked before anything else by whoever means to change something.
  virtual Result<void> check_writable() const = 0;

  // Of a domain that is defined. A host without a daemon has none that runs; whether somebody uses an image all the
  // same, its locks say.
  virtual Result<DomainState> state(const std::string& domain) const = 0;

  // Whoever runs the machines; nullptr where nobody does.
  virtual Machines* machines() const { return nullptr; }

  // Where new images go of which nobody says otherwise; a root path.
  virtual std::string images_directory() const { return Layout::images_directory(); }

  // Nothing where no running pool lists the file at this root path. A host without a daemon has no pools.
  virtual std::optional<StorageVolume> volume_of(const std::string&) const { return std::nullopt; }
  // The root path of a volume. Nothing: no running pool has it.
  virtual std::optional<std::string> path_of(const StorageVolume&) const { return std::nullopt; }

  // kUnsupported where the files that definitions name are those of another machine.
  Result<void> check_images_are_here() const;

  // Whether the machine's memory was saved when it stopped, to go on with the disks as they are now.
  virtual Result<bool> has_saved_memory(const std::string& domain) const = 0;

 protected:
  struct Stores {
    std::unique_ptr<DefinitionStore> definitions;
    std::unique_ptr<MetadataStore> metadata;
    std::shared_ptr<DocumentWriter> writer;
  };
  Host(Layout layout, HostEvents events, Stores stores);

  // Finishes what interrupted commands left, where no running command has it; what can't be finished is told through
  // the events.
  void recover_all();

 private:
  // With the exclusive lock held.
  Result<void> recover(const std::string& domain);
  // The images that a record would remove although a domain needs them: it was defined after the interruption.
  std::vector<SparedImage> spared_images(const JournalRecord& record) const;
  // Whether a domain was made in the place of the one that the record is for.
  Result<bool> is_another_domain(const JournalRecord& record) const;

  Layout layout_;
  HostEvents events_;
  Stores stores_;
  Journal journal_;
  std::set<std::string> told_;  // domains whose record could not be carried out, and whose user knows
};

}  // namespace varve
