// A second opinion on a qcow2 image, for tests: counts every reference from header, L1 and L2 tables, snapshots,
// bitmaps and the refcount structure itself, and compares with the refcounts. It shares no code with src/qcow2 and is
// fast enough to run on tens of thousands of small images. It finds what `qemu-img check` 7.2 finds
// (tests/crash/qcow2_scan_test.cc holds the two against each other).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace varve::test {

struct Qcow2Scan {
  std::vector<std::string> errors;  // something is, or will be, read or overwritten wrongly
  std::vector<std::string> leaks;   // clusters that count more references than there are
  bool clean() const { return errors.empty() && leaks.empty(); }
  std::string describe() const;  // all of them, a line each

  // What a test that builds a special image wants to be sure of.
  uint64_t clusters = 0;                // of the file, the last one counted whole
  uint64_t free_clusters = 0;           // of these, with refcount 0
  uint64_t refcount_blocks = 0;         // that exist
  uint64_t refcount_table_entries = 0;  // that the table has room for
  uint64_t refcounts_per_block = 0;
  uint64_t shared_tables = 0;        // L2 tables that more than one L1 table names
  uint64_t compressed = 0;           // L2 entries
  uint64_t copied_in_snapshots = 0;  // COPIED flags in L2 tables that only snapshots use: nobody keeps them true
  uint64_t bitmaps = 0;              // that the header promises to be consistent
  uint64_t bitmap_contents = 0;      // a hash of the bitmap directory and all that it refers to
  uint64_t machine_states = 0;       // a hash of what snapshots hold behind the end of the disk
};

Qcow2Scan scan_qcow2(std::span<const std::byte> file);

}  // namespace varve::test
