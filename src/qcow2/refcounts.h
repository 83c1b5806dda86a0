// The refcount structure of an image (qcow2 specification, "Host cluster management"): table and blocks in memory,
// blocks read when they are first needed or all at once, clusters allocated and freed. Knows nothing of flush order:
// its users say when what is written (qcow2/image_writer.cc, qcow2/snapshot_transaction.cc). Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "io/block_device.h"
#include "qcow2/header.h"
#include "qcow2/refcount_array.h"

namespace varve::qcow2 {

// One bit per cluster. Memory grows with the parts of the file that have a bit set, not with the highest one: a hostile
// refcount table may speak of clusters that no disk has.
class ClusterSet {
 public:
  bool contains(uint64_t cluster) const { return (word(cluster / 64) >> (cluster % 64) & 1) != 0; }
  void insert(uint64_t first, uint64_t count = 1);
  // The bits of 64 clusters, from cluster index * 64 on.
  uint64_t word(uint64_t index) const {
    const uint64_t chunk = index / kWordsPerChunk;
    return chunk < chunks_.size() && chunks_[chunk] ? chunks_[chunk][index % kWordsPerChunk] : 0;
  }
  void add_to_word(uint64_t index, uint64_t bits);
  // No cluster from here on is in the set.
  uint64_t capacity() const { return chunks_.size() * kWordsPerChunk * 64; }
  // Calls visit(index, word) for every word that is not 0, in order.
  template <typename Visit>
  void for_each_word(Visit visit) const {
    for (uint64_t c = 0; c < chunks_.size(); ++c) {
      if (!chunks_[c]) continue;
      for (uint64_t w = 0; w < kWordsPerChunk; ++w)
        if (chunks_[c][w] != 0) visit(c * kWordsPerChunk + w, chunks_[c][w]);
    }
  }

 private:
  static constexpr uint64_t kWordsPerChunk = 4096;
  std::vector<std::unique_ptr<uint64_t[]>> chunks_;
};

class Refcounts {
 public:
  // Reads and checks the refcount table. The device outlives the object.
  static Result<Refcounts> open(BlockDevice& file, const Header& header);

  uint64_t cluster_size() const { return cluster_size_; }
  // All blocks, in large sequential reads.
  Result<void> load_all();
  Result<uint64_t> get(uint64_t cluster);
  uint64_t get_loaded(uint64_t cluster) const { return array_.get(cluster); }
  // Whether all of a run have refcount `value`; clusters beyond the table count as 0.
  bool all_loaded_equal(uint64_t first, uint64_t count, uint64_t value) const {
    return first + count <= array_.clusters() ? array_.all_equal(first, count, value) : value == 0;
  }
  // Bulk changes to clusters in use; kCorrupt (one has refcount 0: the image counts fewer references than it holds) or
  // kUnsupported (overflow: the refcount width is too small) — part of the run may be changed then, so the caller gives
  // up.
  Result<void> increment(uint64_t first, uint64_t count);
  Result<void> decrement(uint64_t first, uint64_t count);

  // The first free run of `count` clusters, now with refcount 1. Avoids clusters in `reserved`.
  Result<uint64_t> allocate(uint64_t count);
  // A run of 1 to `count` clusters at the first free place: {first, how many}.
  Result<std::pair<uint64_t, uint64_t>> allocate_up_to(uint64_t count);
  // Searches start here again after something was freed.
  void clusters_freed(uint64_t first) {
    hint_ = std::min(hint_, first);
    run_hint_ = std::min(run_hint_, first);
  }
  // Clusters that may not be allocated although their refcount is 0 (in use in the present state of a commit).
  void set_reserved(const ClusterSet* reserved) {
    reserved_ = reserved;
    hint_ = 0;
    run_hint_ = 0;
  }
  // A bit for every cluster that is in use. All blocks must be loaded.
  ClusterSet used_clusters() const;

  // What has to be written. A dirty block without a place gets one from place_blocks().
  size_t block_count() const { return block_flags_.size(); }
  bool is_dirty(size_t block) const { return (block_flags_[block] & kDirty) != 0; }
  bool any_dirty() const { return dirty_blocks_ != 0; }
  void mark_clean(size_t block);
  std::span<const std::byte> block_bytes(size_t block) const {
    return array_.bytes().subspan(block * cluster_size_, cluster_size_);
  }
  std::vector<uint64_t>& table() { return table_; }  // host offsets by block, 0: none; covers block_count() at least
  // Gives every dirty block without one a cluster, and the table a larger place where it has become too small. Repeats
  // until nothing is missing, because every cluster given may dirty another block.
  Result<void> place_blocks();
  // Gives every dirty block a *new* cluster, and the table too: nothing of the present structure is touched.
  Result<void> relocate_dirty_blocks();

  // What relocate_dirty_blocks() left behind, {first cluster, count}.
  const std::vector<std::pair<uint64_t, uint64_t>>& replaced() const { return replaced_; }

  uint64_t table_offset() const { return table_offset_; }
  uint32_t table_clusters() const { return table_clusters_; }
  bool table_changed() const { return table_changed_; }
  void set_table_written() { table_changed_ = false; }
  std::vector<std::byte> table_bytes() const;  // table_clusters() clusters, zero-filled
  // Writes the dirty blocks to their places, neighbours together, and marks them clean.
  Result<void> write_dirty_blocks();
  // Tables that place_blocks() left behind, {first cluster, count}, still counted: the caller frees them when the new
  // one is in force. (relocate_dirty_blocks() frees them itself: there everything comes into force at once.)
  std::vector<std::pair<uint64_t, uint64_t>>& superseded_tables() { return superseded_tables_; }

 private:
  static constexpr uint8_t kLoaded = 1;
  static constexpr uint8_t kDirty = 2;
  static constexpr uint8_t kRelocated = 4;

  Refcounts(BlockDevice& file, const Header& header);
  Result<void> load(size_t first_block, size_t last_block);
  void add_used_clusters(size_t block, ClusterSet& used) const;
  Result<void> ensure_loaded(uint64_t first, uint64_t count);
  Result<void> cover(uint64_t clusters);
  void mark_dirty(uint64_t first, uint64_t count);
  Error not_counted(uint64_t cluster) const;
  Result<uint64_t> next_free(uint64_t from);
  Result<uint64_t> find_free(uint64_t count);
  Result<void> take(uint64_t first, uint64_t count);
  Result<void> move_table(uint64_t blocks_needed);
  bool is_free(uint64_t cluster) const {
    return array_.get(cluster) == 0 && (reserved_ == nullptr || !reserved_->contains(cluster));
  }

  BlockDevice* file_;
  uint64_t cluster_size_;
  uint64_t per_block_;  // refcounts in one block
  uint64_t table_offset_;
  uint32_t table_clusters_;
  bool table_changed_ = false;
  std::vector<uint64_t> table_;
  std::vector<uint8_t> block_flags_;
  RefcountArray array_;
  size_t dirty_blocks_ = 0;
  uint64_t hint_ = 0;      // nothing is free below
  uint64_t run_hint_ = 0;  // where the search for the next run starts; smaller holes below stay for single clusters
  const ClusterSet* reserved_ = nullptr;
  std::vector<std::pair<uint64_t, uint64_t>> superseded_tables_;
  std::vector<std::pair<uint64_t, uint64_t>> replaced_;
};

}  // namespace varve::qcow2
