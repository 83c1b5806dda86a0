// What an open image consists of; shared by the files that implement qcow2::Image and SnapshotTransaction.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <shared_mutex>

#include "qcow2/compressed_cluster.h"
#include "qcow2/guest_data.h"
#include "qcow2/guest_reader.h"
#include "qcow2/image.h"
#include "qcow2/image_writer.h"
#include "qcow2/mapping.h"
#include "qcow2/refcounts.h"

namespace varve::qcow2 {

// Lock order: io_lock, then metadata_lock, then the reader's own.
struct Image::State {
  std::shared_ptr<BlockDevice> file;
  std::shared_ptr<BlockDevice> data;    // where guest data is: `file`, or what OpenOptions give in its place
  bool data_given = false;              // they give something
  std::optional<GuestData> guest_data;  // `data` again, as guest data is read and written
  std::shared_ptr<BlockDevice> backing;
  Header header;
  std::vector<Snapshot> snapshots;
  uint64_t snapshot_table_bytes = 0;
  bool writable = false;

  std::mutex metadata_lock;               // mapping, writer
  std::condition_variable whole_written;  // with it: a write of whole clusters has ended
  // Held shared while guest data is read or written in place, exclusively where clusters that such I/O may still be
  // looking at are given away.
  std::shared_mutex io_lock;
  std::optional<Mapping> mapping;
  std::unique_ptr<GuestReader> reader;
  std::unique_ptr<ImageWriter> writer;  // where writable

  // The bitmaps that record writes, from the first write on; in the file they are "in use" then.
  std::mutex bitmaps_lock;  // after the others
  bool recording_started = false;
  std::vector<DirtyBitmap> recording;

  std::mutex compressors_lock;  // held for nothing else
  std::vector<std::unique_ptr<ClusterCompressor>> compressors;
  Result<std::unique_ptr<ClusterCompressor>> take_compressor();
  void give_back(std::unique_ptr<ClusterCompressor> compressor);

  // What keeps guest data from being read and changed: named once, for any point.
  Result<void> check_readable() const;
  Result<void> check_writable() const;
  // image_amend.cc
  Result<void> rewrite_refcounts(uint32_t bits);
  struct FoundTable {
    uint64_t offset = 0;
    uint64_t guest_offset = 0;  // of the first cluster that it maps
    bool active = false;        // used by the active disk, and perhaps by snapshots
    uint64_t l1_entry = 0;      // counted through the L1 tables of the active disk and of all snapshots
  };
  Result<std::vector<FoundTable>> all_tables();
  Result<bool> expand_zeroes(const FoundTable& found, std::span<be64> table);
  Result<void> expand_all_zeroes(const std::function<void(uint64_t done, uint64_t total)>& progress);
  Result<bool> has_compressed_clusters();

  // Reads header, snapshot table and L1 (again).
  Result<void> load();
};

}  // namespace varve::qcow2
