// Reading a snapshot of an image that somebody else has open for writing, without a lock that would keep anything from
// changing (docs/locking.md, "Points of an image that is in use").
//
// What a snapshot refers to (its L1 table, L2 tables, data clusters) does not change for as long as the snapshot is
// there, but for COPIED flags, which readers don't look at. It may be deleted, though, and then its clusters hold other
// things. Whoever deletes it writes a snapshot table without it, makes the header point there, and only then gives
// clusters away. So, as with a seqlock: read first, and then ask check() whether the snapshot is still there. If it
// says yes, what was read is the snapshot's; if not, it is to be thrown away.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "qcow2/header.h"
#include "qcow2/snapshot_table.h"

namespace varve::qcow2 {

class PointWatch {
 public:
  // `snapshot` is one that was just read from the image's table, and whose L1 table will be read. `file` outlives the
  // watch. kIo where it is gone already.
  static Result<std::unique_ptr<PointWatch>> begin(BlockDevice& file, const Header& header, const Snapshot& snapshot);

  // That the snapshot was still there, as it was, after whatever was read before the call; [offset, offset+length) is
  // where on its disk that was. kIo (ESTALE) where it is not, and at every later call, too. From any thread.
  Result<void> check(uint64_t offset, uint64_t length);

 private:
  // Where the table was when its bytes were last understood, and the bytes up to the end of the snapshot's entry. While
  // the header says the same place and the same bytes are there, the snapshot is in it.
  struct Place {
    uint32_t nb_snapshots = 0;
    uint64_t snapshots_offset = 0;
    std::vector<std::byte> bytes;
    bool operator==(const Place&) const = default;
  };
  PointWatch(BlockDevice& file, const Header& header, Snapshot snapshot)
      : file_(file), bytes_per_l1_entry_(header.bytes_per_l2_table()), snapshot_(std::move(snapshot)) {}
  Result<Place> find();
  Result<bool> is_unchanged(const Place& place);
  Result<bool> has_l1_entries(uint64_t offset, uint64_t length);
  Error gone(const std::string& how);

  BlockDevice& file_;
  uint64_t bytes_per_l1_entry_;
  Snapshot snapshot_;
  std::vector<uint64_t> l1_;  // without COPIED flags
  std::atomic<bool> is_gone_ = false;
  std::mutex lock_;  // place_
  std::shared_ptr<const Place> place_;
};

}  // namespace varve::qcow2
