// One-sector commits: any number of snapshot changes to one image, prepared in clusters that are free in the present
// state, and made true by writing one sector (docs/architecture.md, "One-sector commits"; docs/journal.md).
//
//   auto t = TRY(SnapshotTransaction::begin(image));
//   TRY(t.create({.name = "before-upgrade"}));
//   auto prepared = TRY(t.prepare());          // long work; the image still reads as the old state, to anybody
//   TRY(SnapshotTransaction::commit(image, prepared));   // one sector, two flushes; now it is the new state
//   SnapshotTransaction::discard_freed(image, prepared); // gives the old metadata and freed data back; may fail
//   harmlessly
//
// Several images: prepare all, write a journal record that holds every `before` and `after`, then commit all.
#pragma once

#include <array>
#include <memory>

#include "qcow2/image.h"

namespace varve::qcow2 {

struct SnapshotSpec {
  std::string name;
  uint32_t date_sec = 0;
  uint32_t date_nsec = 0;
};

struct FileRange {
  uint64_t offset = 0;  // bytes in the image file
  uint64_t length = 0;
};

using HeaderSector = std::array<std::byte, kHeaderSectorSize>;

struct PreparedCommit {
  HeaderSector before{};
  HeaderSector after{};
  std::vector<FileRange> freed;   // in use before, free after, not merely moved; adjacent ones merged
  std::vector<FileRange> shadow;  // written by prepare(), free before
  uint64_t old_file_size = 0;     // bytes, before prepare()
};

class SnapshotTransaction {
 public:
  // The image must be open for writing; it is flushed first. One transaction at a time, no guest I/O until it ends.
  // kCorrupt where nobody can tell what one of the snapshots refers to (SnapshotFault): then no change is safe.
  static Result<SnapshotTransaction> begin(Image& image);
  SnapshotTransaction(SnapshotTransaction&&) noexcept;
  ~SnapshotTransaction();  // without a successful prepare(): gives the shadow clusters back

  // The table as it is going to be; indexes below refer to it.
  const std::vector<Snapshot>& snapshots() const;

  Result<void> create(const SnapshotSpec& spec);  // kAlreadyExists is the caller's question: qcow2 allows equal names
  // The active disk becomes the snapshot's, size included. kCorrupt where the snapshot has a fault.
  Result<void> revert(size_t index);
  Result<void> remove(std::span<const size_t> indexes);  // any number, in one pass over the tables
  Result<void> rename(size_t index, const std::string& new_name);
  // Every entry of the table gets the extra data that version 3 asks for.
  void complete_entries();

  // Writes everything but the header and flushes. On failure the image is as it was and the space is given back. After
  // it, either commit() or abandon() follows.
  Result<PreparedCommit> prepare();

  // No transaction on the image, with one change of each kind, makes its file take more than this beyond what it takes
  // now, in bytes: a figure that costs nothing. What one really takes, a rehearsal tells (io/rehearsal_device.h).
  static Result<uint64_t> most_new_bytes(const Image& image);

  // Writes prepared.after over prepared.before and flushes, then reloads `image`. A sector that is
  // neither of the two is a conflict (kInUse): another program has written to the image. Idempotent: committing what is
  // committed does nothing. After a failure `image` still reads as before, but takes no more writes until it is opened
  // again or the commit is repeated: nobody knows which state the file is in.
  static Result<void> commit(Image& image, const PreparedCommit& prepared);
  // The same on a bare device, for the journal's recovery.
  static Result<void> commit_sector(BlockDevice& file, const HeaderSector& before, const HeaderSector& after);
  static Result<void> discard_freed(Image& image, const PreparedCommit& prepared);
  // Forgets a prepared commit that will not be made: gives its shadow clusters back. Does nothing where
  // it was made after all.
  static void abandon(Image& image, const PreparedCommit& prepared);

 private:
  struct State;
  explicit SnapshotTransaction(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace varve::qcow2
