// The snapshot table, read as far as it makes sense, with what a repair would leave out of it; and the table that a
// repair writes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "check/layout.h"
#include "check/tally.h"

namespace varve::check {

struct SnapshotEntry {
  uint64_t l1_offset = 0;
  uint32_t l1_size = 0;
  std::string id;
  std::string name;
  uint32_t date_sec = 0;
  uint32_t date_nsec = 0;
  uint64_t vm_clock_nsec = 0;
  uint64_t vm_state_size = 0;
  uint64_t disk_size = 0;
  uint64_t icount = 0;
  uint32_t extra_bytes = 0;              // as the table says; what is too much is already left out
  std::vector<std::byte> unknown_extra;  // behind the fields above
};

struct SnapshotEntries {
  std::vector<SnapshotEntry> entries;
  uint64_t table_bytes = 0;      // of the table as it is on disk
  bool needs_new_table = false;  // entries have to be written anew
  bool needs_fewer = false;      // the header has to say a smaller number
};

// Reports what is wrong; with Repair::kAll it drops what is too much. An error ends the check (`error` in tally is
// set).
Result<SnapshotEntries> read_snapshot_entries(const ImageFile& file, const Layout& layout, Repair repair,
                                              const Report& report, Tally& tally);

// kMaxSnapshotTableBytes is the limit: nothing where the table would be larger.
std::vector<std::byte> serialize(const std::vector<SnapshotEntry>& entries);

}  // namespace varve::check
