// One change of a domain, planned and ready to run: the disks that it changes are open and locked, the documents that
// it writes are made, the domain's lock is held. Made by the plan_… functions (create_snapshot.h and its neighbours);
// thrown away, it leaves everything as it was.
//
// run() prepares every disk, writes the journal's record, and then makes it all true (docs/journal.md): before the
// record nothing has happened, after it everything will.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "disk/internal_disk.h"
#include "disk/new_image.h"
#include "host/host.h"
#include "operation/image_repair.h"
#include "operation/plan.h"
#include "operation/preflight.h"
#include "store/journal_record.h"

namespace varve {

struct DiskTask {
  InternalDisk disk;
  DiskChange change;
};

class Operation {
 public:
  // `failure` is how an error of run() begins: "snapshot 'a' of 'vm' is not created".
  Operation(Host& host, DomainLock lock, std::string domain, std::string title, std::string failure);

  Plan& plan() { return plan_; }
  const Plan& plan() const { return plan_; }
  const std::string& domain() const { return record_.domain; }
  const Layout& layout() const { return host_.layout(); }
  // The name of the snapshot that it is about; empty where it is about none.
  const std::string& snapshot() const { return record_.snapshot; }
  void set_snapshot(std::string name) { record_.snapshot = std::move(name); }
  // Whoever finishes this after an interruption leaves a domain of the same name alone that has another UUID.
  void set_uuid(std::string uuid) { record_.domain_uuid = std::move(uuid); }
  // What the user would type to do the same again, without "varve": told after an interruption.
  void set_command(std::string command) { record_.operation = std::move(command); }

  // Each adds its steps to the plan.
  void add(NewImage image);
  void add(DiskTask task);
  void add(std::vector<FileChange> changes);
  void add(std::vector<FileChange> changes, std::vector<std::string> steps);  // in these words
  void add(ImageRepair repair);                                               // before everything else
  void remove_image(const std::string& root_path);
  // What whoever runs the machine does, instead of everything above; several, in this order.
  // One that is kBestEffort may fail: a note says so.
  enum class Need : uint8_t { kNeeded, kBestEffort };
  void delegate(std::string step, std::function<Result<void>(const Watch&)> work, Need need = Need::kNeeded);
  bool is_delegated() const { return !delegated_.empty(); }
  // Asked once more right before the record is written: that what the plan builds upon is still so.
  void expect(std::function<Result<void>()> expectation) { expectations_.push_back(std::move(expectation)); }
  // The domain's definition is the one that the plan was made for.
  void expect_definition(const DomainDocument& definition);
  void remove_directory(const std::string& root_path);

  // Preflight of what the steps need of the system: that every file and directory can be written, and that there is
  // space for all of it together. Refuses with every reason; adds to the plan's checks. Nothing is changed.
  Result<void> check();

  // Once, after check(). On failure before the record, nothing was changed; after it, the error says that the next
  // command goes on.
  Result<void> run(const Watch& watch = {});

 private:
  Result<void> check_space() const;
  Result<void> run_delegated(const Watch& watch);
  Result<void> mend_images();
  Result<void> make_images();
  Result<void> prepare();
  Result<void> check_expectations() const;
  Result<void> complete();
  Error after_refusal() const;

  Host& host_;
  DomainLock lock_;
  std::string failure_;
  Plan plan_;
  JournalRecord record_;
  std::vector<ImageRepair> repairs_;
  std::vector<NewImage> new_images_;
  std::vector<DiskTask> disks_;
  std::vector<std::function<Result<void>()>> expectations_;
  std::vector<Error> refused_;  // by whoever has the documents
  struct Delegated {
    std::string step;
    std::function<Result<void>(const Watch&)> work;
    Need need;
  };
  std::vector<Delegated> delegated_;
};

}  // namespace varve
