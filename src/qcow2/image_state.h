// What an open image consists of; shared by the files that implement qcow2::Image and SnapshotTransaction.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "qcow2/compressed_cluster.h"
#include "qcow2/guest_reader.h"
#include "qcow2/image.h"
#include "qcow2/image_writer.h"
#include "qcow2/mapping.h"
#include "qcow2/refcounts.h"

namespace varve::qcow2 {

// Lock order: io_lock, then metadata_lock, then the reader's own.
struct Image::State {
  std::shared_ptr<BlockDevice> file;
  std::shared_ptr<BlockDevice> data;  // what guest data is read from and written to: `file`, or OpenOptions::data
  bool data_given = false;            // it is OpenOptions::data
  std::shared_ptr<BlockDevice> backing;
  Header header;
  std::vector<Snapshot> snapshots;
  uint64_t snapshot_table_bytes = 0;
  bool writable = false;

  std::mutex metadata_lock;  // mapping, writer
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
  // Reads header, snapshot table and L1 (again).
  Result<void> load();
};

}  // namespace varve::qcow2
