// The snapshot table (qcow2 specification, "Snapshots"): its entries as values, to and from bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qcow2/header.h"

namespace varve::qcow2 {

// Why an entry of the table, which can be read, can't be used. The rest of the image does not suffer from it.
struct SnapshotFault {
  std::string what;  // "its L1 table (offset 0x200, 1 entries) is not cluster-aligned"
  // The table of the snapshot can be read all the same: what it refers to is known, and it can be deleted.
  bool table_is_known = false;
};

struct Snapshot {
  uint64_t l1_table_offset = 0;
  uint32_t l1_size = 0;  // entries
  std::string id;
  std::string name;
  uint32_t date_sec = 0;  // Unix time
  uint32_t date_nsec = 0;
  uint64_t vm_clock_nsec = 0;
  uint64_t vm_state_size = 0;                 // bytes
  std::optional<uint64_t> disk_size;          // bytes; old v2 images lack it
  std::optional<uint64_t> icount;             // all ones: not available
  std::vector<std::byte> unknown_extra_data;  // what follows the known extra data, kept as found
  std::optional<SnapshotFault> fault;         // found when the table was read; not in the file
};

struct SnapshotTable {
  std::vector<Snapshot> snapshots;
  uint64_t bytes = 0;  // that the table takes in the file, from header.snapshots_offset on
};

// Reads the table that `header` points to. Entries must be whole and within the file; what else is wrong with one, its
// L1 table's place and size or the size of its disk, is noted as its fault.
Result<SnapshotTable> read_snapshot_table(BlockDevice& file, const Header& header);
std::vector<std::byte> serialize_snapshot_table(std::span<const Snapshot> snapshots);

// That a snapshot with a fault was to be used, and what to do.
Error fault_of(const std::string& image, const Header& header, const Snapshot& snapshot);

// How QEMU's block layer finds a snapshot by a user's word: by id first, then by name (qemu-img snapshot -a; convert
// -l)…
std::optional<size_t> find_by_id_or_name(std::span<const Snapshot> snapshots, const std::string& id_or_name);
// …or by name alone (qemu-img snapshot -d, and everything that comes from libvirt's metadata).
std::optional<size_t> find_by_name(std::span<const Snapshot> snapshots, const std::string& name);
// The id that QEMU would give to the next snapshot: the highest number in use plus one.
std::string next_snapshot_id(std::span<const Snapshot> snapshots);

}  // namespace varve::qcow2
