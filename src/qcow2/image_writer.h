// Guest writes: allocation, copy on write, zeroes, and the order in which all of it reaches the disk.
//
// Tables are changed in memory. write_back() brings them out: refcount blocks (and the guest data written so far),
// flush, refcount table, flush, L2 tables, flush, L1 entries, flush. A crash in between leaves clusters that are
// counted but not referenced: leaks. Clusters that lost a reference are counted down only after that (release_freed()),
// and cannot be given out again before, so no crash can show one cluster to two owners.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "qcow2/cluster_intervals.h"
#include "qcow2/guest_reader.h"
#include "qcow2/mapping.h"
#include "qcow2/refcounts.h"

namespace varve::qcow2 {

// All calls are made with the image's metadata lock held.
class ImageWriter {
 public:
  // All references outlive the writer. `header` follows what the writer changes on disk.
  static Result<std::unique_ptr<ImageWriter>> open(BlockDevice& file, const GuestData& data, Header& header,
                                                   Mapping& mapping, GuestReader& reader,
                                                   const std::shared_ptr<BlockDevice>& backing);

  // Where the next guest bytes can be written without touching a table: {offset in the data device, length}; length 0:
  // nowhere.
  struct InPlace {
    uint64_t host_offset = 0;
    uint64_t length = 0;
  };
  Result<InPlace> find_in_place(uint64_t offset, uint64_t length);
  // Whole clusters in new places, which the guest sees when end_whole() is told that they are written; in between, the
  // lock need not be held. count 0: write_allocating() has to do it. Where is_being_written() says so, another write
  // has to end before.
  struct FreshClusters {
    uint64_t guest_cluster = 0;  // the guest's offset
    uint64_t host = 0;           // the offset in the data device
    uint64_t count = 0;
  };
  Result<FreshClusters> begin_whole(uint64_t offset, uint64_t length);
  Result<void> end_whole(const FreshClusters& fresh, Result<void> written);  // returns the failure of `written`, too
  bool is_being_written(uint64_t offset, uint64_t length) const;
  // Allocates for a first part of `data` and writes it; returns how many bytes that was.
  Result<uint64_t> write_allocating(uint64_t offset, std::span<const std::byte> data);
  // Makes the guest's cluster at `guest_cluster` the compressed `stream`, packed behind the last one.
  Result<void> write_compressed(uint64_t guest_cluster, std::span<const std::byte> stream);
  // Makes a first part of [offset, offset+length) read as zeroes through the tables; returns how many bytes. 0: the
  // tables can't say it (edges of clusters, v2 with a backing file), zero bytes have to be written.
  enum class ZeroKind : uint8_t { kUnmap, kKeepAllocated, kDiscard };
  Result<uint64_t> zero_by_table(uint64_t offset, uint64_t length, ZeroKind kind);
  // No guest offset is mapped any more, once write_back() has brought it out; nothing may be dirty before.
  Result<void> unmap_everything();
  // Cuts off what is free at the end of the file. Nothing may be dirty.
  Result<void> trim_file();

  // Another size for the disk, on disk when they return; nothing is dirty before. What is new reads as zeroes. Where
  // they fail, the header in memory may say either size.
  Result<void> grow(uint64_t new_size, bool with_places);  // with_places: new clusters are allocated
  Result<void> shrink(uint64_t new_size);

  // Places that nothing shows yet, and that are to read as zeroes once something does: the guest's clusters from the
  // one at `guest_cluster` on.
  Result<void> zero_places(uint64_t first_cluster, uint64_t guest_cluster, uint64_t count);

  // Makes the tables durable; see above.
  Result<void> write_back();
  // Counts down what write_back() has made unreferenced and gives it back to the file system. No I/O may be under way
  // that found its way through the old tables.
  Result<void> release_freed();
  // One reference less to these, in the next release_freed().
  void release(uint64_t first_cluster, uint64_t count) {
    freed_.emplace_back(first_cluster, count);
    metadata_.reset();  // it may be metadata that has moved
  }
  // Dirty tables fill the memory: it is time for write_back().
  bool wants_write_back() const;

  // The refcounts as the snapshot transaction needs them: nothing dirty (after write_back and release_freed).
  Refcounts& refcounts() { return refcounts_; }
  Result<void> reload_refcounts();
  // What is known of the file may not be true any more: no further write, until reload_refcounts() succeeds.
  void give_up() { failed_ = true; }
  Result<void> check_usable() const;  // kIo after give_up(), or after a write_back() that failed

 private:
  ImageWriter(BlockDevice& file, const GuestData& data, Header& header, Mapping& mapping, GuestReader& reader,
              const std::shared_ptr<BlockDevice>& backing, Refcounts refcounts)
      : file_(file),
        data_(data),
        header_(header),
        mapping_(mapping),
        reader_(reader),
        backing_(backing),
        refcounts_(std::move(refcounts)) {}

  Result<L2Table*> writable_table(uint64_t l1_index);
  void set_entry(L2Table& table, uint64_t index, uint64_t entry, uint64_t bitmap);
  Result<void> drop_cluster(uint64_t guest_cluster, uint64_t entry);
  Result<void> write_clusters(uint64_t host, uint64_t guest_cluster, uint64_t offset, std::span<const std::byte> data);
  Result<bool> lies_past_file(uint64_t host);
  Result<bool> reads_as_zeroes(uint64_t offset, uint64_t length);
  Result<void> write_data(uint64_t host, uint64_t guest_offset, std::span<const std::byte> data);
  bool needs_place(uint64_t entry) const;
  Result<FreshClusters> place_fresh(const L2Table& table, uint64_t offset, uint64_t length);
  Result<void> link_fresh(L2Table& table, const FreshClusters& fresh);
  Result<uint64_t> write_fresh(L2Table& table, uint64_t offset, std::span<const std::byte> data);
  Result<uint64_t> write_standard(L2Table& table, uint64_t offset, std::span<const std::byte> data);
  // kCorrupt where one of these clusters, which guest data or a new table is to go to, holds metadata that is in use:
  // an entry or a refcount lies, and what was written there would destroy the image.
  Result<void> check_no_metadata(uint64_t first_cluster, uint64_t count);
  Result<std::pair<uint64_t, uint64_t>> place_data(uint64_t guest_cluster, uint64_t count);
  void forget_place(uint64_t first_cluster, uint64_t count);
  Result<uint64_t> place_compressed(uint64_t length);
  Result<uint64_t> write_extended(L2Table& table, uint64_t offset, std::span<const std::byte> data);
  Result<bool> zero_cluster(uint64_t guest_cluster, ZeroKind kind);
  Result<bool> zero_subclusters(uint64_t guest_cluster, uint64_t first, uint64_t last, ZeroKind kind);
  Result<void> write_back_ordered();
  Result<void> write_refcount_table();
  Result<void> write_header_fields();
  Result<void> grow_l1(uint64_t entries);
  Result<void> zero_new_space(uint64_t from, uint64_t end);
  Result<void> write_zero_data(uint64_t from, uint64_t end);
  // Every cluster of [from, end), from the beginning of one, gets a place.
  Result<void> preallocate(uint64_t from, uint64_t end);

  uint64_t cluster_size() const { return header_.cluster_size(); }

  BlockDevice& file_;
  const GuestData& data_;
  Header& header_;
  Mapping& mapping_;
  GuestReader& reader_;
  const std::shared_ptr<BlockDevice>& backing_;
  Refcounts refcounts_;
  std::set<uint64_t> dirty_tables_;                   // L1 indexes
  std::set<uint64_t> dirty_l1_;                       // L1 indexes
  std::vector<std::pair<uint64_t, uint64_t>> freed_;  // {first cluster, count}: one reference less each
  ClusterIntervals dropped_data_;                     // clusters of an external data file that nothing refers to
  std::vector<FreshClusters> being_written_;          // between begin_whole() and end_whole()
  // Data went to places that count already but are not shown yet (subclusters, zero clusters with a place, whole
  // clusters): should the tables reach the disk before it, the guest would see what lay there long ago.
  bool filled_places_ = false;
  uint64_t file_end_ = 0;     // where the last cluster ends that was written in part, behind the end of the file
  uint64_t pack_offset_ = 0;  // where the next compressed cluster goes, within a host cluster that has some; 0: nowhere
  // Where the metadata lies that the active disk needs; made when it is asked for, and anew when something moved.
  std::optional<ClusterIntervals> metadata_;
  bool failed_ = false;
};

}  // namespace varve::qcow2
