// The journal of a host: one durable record per operation that is under way, var/lib/varve/journal/DOMAIN.journal
// (docs/journal.md). An operation prepares every image, writes its record, and from then on will happen: by itself, or,
// if it is interrupted, by whoever opens the domain next and calls recover().
//
// The caller holds the domain's lock exclusively (store/domain_lock.h) for everything but domains() and read().
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "store/document_writer.h"
#include "store/journal_record.h"
#include "store/layout.h"
#include "store/step_hook.h"

namespace varve {

class FileDevice;

Result<FileStamp> stamp_of(const FileDevice& file);
// The stamp of an open file, with everything written to it on stable storage first.
Result<FileStamp> sync_and_stamp(FileDevice& file);

// How an interrupted operation ended.
struct Recovery {
  enum class Outcome {
    kNothingToDo,  // there was no record
    kFinished,     // everything that it meant to do is done
    kUndone,       // nothing of it is left
    kPartly,       // done but for the images in `unchanged`
    kAbandoned,    // the domain of that name is another one by now: what was not yet done is left alone
  };
  Outcome outcome = Outcome::kNothingToDo;
  std::string domain;
  std::string operation;
  std::vector<std::string> unchanged;  // kPartly: the targets of disks that lack the change
  std::string message;                 // one line for the user
  std::vector<std::string> notes;
};

// An image that a record would remove, and why it is kept.
struct SparedImage {
  std::string path;  // a root path
  std::string reason;
};

class Journal {
 public:
  // Documents are written through `writer`; without one, as files.
  explicit Journal(Layout layout, StepHook hook = {}, std::shared_ptr<DocumentWriter> writer = nullptr);

  // Names of the domains that have a record, or what a torn write of one left, sorted.
  Result<std::vector<std::string>> domains() const;
  // The domain's record. kCorrupt, naming the file, for one that can't be understood: nothing on the domain may be
  // changed until a person has looked at it.
  Result<std::optional<JournalRecord>> read(const std::string& domain) const;

  // Durable when it returns. Replaces the domain's record, if there is one, in one step.
  Result<void> write(const JournalRecord& record);
  // Carries out the record's file changes and removals, in order. Can be repeated. Images that it removes must not be
  // open here. Gives what was refused by whoever has the documents (DocumentWriter); the rest was done,
  // but for removals of files, images and directories after that. Before images go whose domain goes, the
  // record is replaced by one of the removals alone: who finds a domain of that name then knows that it is a new one.
  Result<std::vector<Error>> apply_changes(const JournalRecord& record);
  Result<void> clear(const std::string& domain);

  // Finishes what an interrupted operation on `domain` left, or undoes it where its prepared images were overwritten
  // meanwhile, and clears the record. kInUse when somebody has one of the images open: the record stays. Can be
  // interrupted anywhere and repeated. Images in `spared` (root paths) are not removed.
  Result<Recovery> recover(const std::string& domain, const std::vector<SparedImage>& spared = {});

  // Clears the record without carrying it out.
  Result<Recovery> abandon(const JournalRecord& record);

  // Calls the hook. Operations name their own steps between write() and clear() with it.
  void step(std::string_view name) const {
    if (hook_) hook_(name);
  }
  // The root path of a domain's record.
  static std::string record_path(const std::string& domain);
  // Its host path.
  std::string path_of(const std::string& domain) const;

 private:
  Result<void> remove_image(const std::string& root_path);
  Result<void> remove_directory(const std::string& root_path);
  std::string directory() const;
  std::string temporary_path_of(const std::string& domain) const;

  Layout layout_;
  StepHook hook_;
  std::shared_ptr<DocumentWriter> writer_;
};

}  // namespace varve
