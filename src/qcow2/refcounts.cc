#include "qcow2/refcounts.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 56;  // offsets in tables have 56 bits
// Passes take time and memory for every cluster that the table reaches, so it may not reach anywhere: a file that was
// cut short leaves blocks behind its end, but 1 TiB behind it (with clusters of 64 KiB) stands what means harm.
constexpr uint64_t kMaxClustersBehindFile = uint64_t{1} << 24;

// Refcount blocks that count nothing but clusters behind the end of the file: a few may be left where somebody cut free
// space off, many would be an order to allocate.
constexpr uint64_t kMaxIdleBlockBytes = uint64_t{64} << 20;
constexpr uint64_t kMinIdleBlocks = 32;

constexpr uint64_t kWriteBytes = uint64_t{4} << 20;  // of neighbouring blocks at a time

}  // namespace

void ClusterSet::add_to_word(uint64_t index, uint64_t bits) {
  const uint64_t chunk = index / kWordsPerChunk;
  if (chunk >= chunks_.size()) chunks_.resize(chunk + 1);
  if (!chunks_[chunk]) chunks_[chunk] = std::make_unique<uint64_t[]>(kWordsPerChunk);
  chunks_[chunk][index % kWordsPerChunk] |= bits;
}

void ClusterSet::insert(uint64_t first, uint64_t count) {
  for (uint64_t c = first; c < first + count;) {
    const uint64_t end = std::min(first + count, (c / 64 + 1) * 64);
    const uint64_t bits = end - c == 64 ? ~uint64_t{0} : ((uint64_t{1} << (end - c)) - 1) << (c % 64);
    add_to_word(c / 64, bits);
    c = end;
  }
}

Refcounts::Refcounts(BlockDevice& file, const Header& header)
    : file_(&file),
      cluster_size_(header.cluster_size()),
      per_block_(header.refcounts_per_block()),
      table_offset_(header.refcount_table_offset),
      table_clusters_(header.refcount_table_clusters),
      array_(header.refcount_order, 0) {}

Result<Refcounts> Refcounts::open(BlockDevice& file, const Header& header) {
  Refcounts r(file, header);
  const uint64_t file_size = TRY(file.size());
  const uint64_t table_bytes = uint64_t{r.table_clusters_} * r.cluster_size_;
  std::vector<be64> raw(table_bytes / 8);
  const uint64_t there = std::min(table_bytes, file_size - r.table_offset_);  // the last cluster may be cut at its end
  TRY(file.read_at(r.table_offset_, std::as_writable_bytes(std::span(raw)).first(there)));
  r.table_.assign(raw.begin(), raw.end());
  while (!r.table_.empty() && r.table_.back() == 0) r.table_.pop_back();

  const auto bad = [&](size_t block, const char* why) {
    return corruption(file.name(), r.table_offset_ + block * 8,
                      fmt::format("refcount block {} at offset {:#x} {}", block, r.table_[block], why));
  };
  const uint64_t file_clusters = div_round_up(file_size, r.cluster_size_);
  if (!r.table_.empty() && (r.table_.size() - 1) * r.per_block_ > file_clusters + kMaxClustersBehindFile) {
    return bad(r.table_.size() - 1, "counts clusters far behind the end of the file")
        .with_note(fmt::format(
            "`qemu-img convert -O qcow2 '{}' NEW` makes an image without it; its snapshots stay behind", file.name()));
  }
  std::vector<uint64_t> sorted;
  for (size_t b = 0; b < r.table_.size(); ++b) {
    const uint64_t offset = r.table_[b];
    if (offset == 0) continue;
    if (offset % r.cluster_size_ != 0) return bad(b, "is not cluster-aligned");
    if (offset >= kMaxFileBytes || offset + r.cluster_size_ > align_up(file_size, r.cluster_size_))
      return bad(b, "lies outside of the file");
    sorted.push_back(offset);
  }
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return corruption(file.name(), r.table_offset_, "the refcount table names one refcount block twice");
  const uint64_t useful_blocks = div_round_up(div_round_up(file_size, r.cluster_size_), r.per_block_);
  if (r.table_.size() > useful_blocks + std::max(kMinIdleBlocks, kMaxIdleBlockBytes / r.cluster_size_))
    return bad(r.table_.size() - 1, "counts clusters far behind the end of the file");
  r.block_flags_.resize(r.table_.size());
  for (size_t b = 0; b < r.table_.size(); ++b)
    if (r.table_[b] == 0) r.block_flags_[b] = kLoaded;
  TRY(r.array_.grow(r.table_.size() * r.cluster_size_));
  return r;
}

// Blocks [first, last), which have places; those that are neighbours in the file are read together.
Result<void> Refcounts::load(size_t first, size_t last) {
  const uint64_t file_size = TRY(file_->size());
  for (size_t b = first; b < last;) {
    if ((block_flags_[b] & kLoaded) != 0) {
      ++b;
      continue;
    }
    size_t end = b + 1;
    while (end < last && (block_flags_[end] & kLoaded) == 0 && table_[end] == table_[end - 1] + cluster_size_) ++end;
    const uint64_t bytes = std::min((end - b) * cluster_size_, file_size - table_[b]);
    TRY(file_->read_at(table_[b], array_.bytes().subspan(b * cluster_size_, bytes)));
    for (; b < end; ++b) block_flags_[b] |= kLoaded;
  }
  return {};
}

Result<void> Refcounts::load_all() {
  return load(0, block_flags_.size());
}

Result<void> Refcounts::ensure_loaded(uint64_t first, uint64_t count) {
  const uint64_t last = std::min<uint64_t>(div_round_up(first + count, per_block_), block_flags_.size());
  for (uint64_t b = first / per_block_; b < last; ++b)
    if ((block_flags_[b] & kLoaded) == 0) return load(b, last);
  return {};
}

Result<uint64_t> Refcounts::get(uint64_t cluster) {
  TRY(ensure_loaded(cluster, 1));
  return array_.get(cluster);
}

Result<void> Refcounts::cover(uint64_t clusters) {
  const uint64_t blocks = div_round_up(clusters, per_block_);
  if (blocks <= block_flags_.size()) return {};
  if (clusters > kMaxFileBytes / cluster_size_ || blocks * 8 > std::max(kMaxRefcountTableBytes, cluster_size_))
    return make_error(ErrorKind::kNoSpace,
                      fmt::format("{}: the refcount table can't grow to cover {} clusters", file_->name(), clusters));
  TRY(array_.grow(blocks * cluster_size_));
  block_flags_.resize(blocks, kLoaded);
  table_.resize(blocks);
  return {};
}

void Refcounts::mark_dirty(uint64_t first, uint64_t count) {
  for (uint64_t b = first / per_block_; b <= (first + count - 1) / per_block_; ++b) {
    if ((block_flags_[b] & kDirty) != 0) continue;
    block_flags_[b] |= kDirty;
    ++dirty_blocks_;
  }
}

void Refcounts::mark_clean(size_t block) {
  if ((block_flags_[block] & kDirty) == 0) return;
  block_flags_[block] &= static_cast<uint8_t>(~kDirty);
  --dirty_blocks_;
}

Error Refcounts::not_counted(uint64_t cluster) const {
  return corruption(
             file_->name(), cluster * cluster_size_,
             fmt::format("the cluster at offset {:#x} is in use, but its refcount is 0", cluster * cluster_size_))
      .with_note(fmt::format("`qemu-img check -r all {}` repairs refcounts; nothing was changed", file_->name()));
}

Result<void> Refcounts::increment(uint64_t first, uint64_t count) {
  if (first + count > array_.clusters()) return not_counted(std::max(first, array_.clusters()));
  TRY(ensure_loaded(first, count));
  mark_dirty(first, count);
  const uint64_t done = array_.increment(first, count);
  if (done == count) return {};
  if (array_.get(first + done) == 0) return not_counted(first + done);
  Error e = make_error(ErrorKind::kUnsupported,
                       fmt::format("{}: a cluster can't be referenced more than {} times with this refcount width",
                                   file_->name(), array_.max_value()));
  e.sys_errno = EINVAL;  // as QEMU has it
  e.path = file_->name();
  e.offset = (first + done) * cluster_size_;
  return std::move(e).with_note("delete a snapshot, or copy the image with a larger refcount_bits");
}

Result<void> Refcounts::decrement(uint64_t first, uint64_t count) {
  if (first + count > array_.clusters()) return not_counted(std::max(first, array_.clusters()));
  TRY(ensure_loaded(first, count));
  mark_dirty(first, count);
  const uint64_t done = array_.decrement(first, count);
  if (done != count) return not_counted(first + done);
  return {};
}

Result<uint64_t> Refcounts::next_free(uint64_t from) {
  for (uint64_t c = from; c < array_.clusters();) {
    if (reserved_ != nullptr) {
      const uint64_t taken = reserved_->word(c / 64) | ((uint64_t{1} << (c % 64)) - 1);
      if (taken == ~uint64_t{0}) {
        c = (c / 64 + 1) * 64;
        continue;
      }
      if (reserved_->contains(c)) {
        ++c;
        continue;
      }
    }
    const uint64_t block = c / per_block_;
    if ((block_flags_[block] & kLoaded) == 0) TRY(load(block, block + 1));
    const uint64_t end = std::min(array_.clusters(), reserved_ != nullptr ? c + 1 : (block + 1) * per_block_);
    for (; c < end; ++c)
      if (is_free(c)) return c;
  }
  return std::max(from, array_.clusters());
}

Result<uint64_t> Refcounts::find_free(uint64_t count) {
  uint64_t first = TRY(next_free(count == 1 ? hint_ : std::max(hint_, run_hint_)));
  if (count == 1) return first;
  for (;;) {
    uint64_t length = 1;
    while (length < count) {
      // Behind the last block, and behind all that is reserved, everything is free.
      if (first + length >= std::max(array_.clusters(), reserved_ != nullptr ? reserved_->capacity() : 0)) return first;
      TRY(ensure_loaded(first + length, 1));
      if (!is_free(first + length)) break;
      ++length;
    }
    if (length == count) return first;
    first = TRY(next_free(first + length + 1));
  }
}

Result<void> Refcounts::take(uint64_t first, uint64_t count) {
  TRY(cover(first + count));
  TRY(ensure_loaded(first, count));
  mark_dirty(first, count);
  for (uint64_t c = first; c < first + count; ++c) array_.set(c, 1);
  return {};
}

Result<uint64_t> Refcounts::allocate(uint64_t count) {
  const uint64_t first = TRY(find_free(count));
  TRY(take(first, count));
  (count == 1 ? hint_ : run_hint_) = first + count;
  return first;
}

Result<std::pair<uint64_t, uint64_t>> Refcounts::allocate_up_to(uint64_t count) {
  const uint64_t first = TRY(find_free(1));
  uint64_t length = 1;
  while (length < count) {
    TRY(ensure_loaded(first + length, 1));
    if (!is_free(first + length)) break;
    ++length;
  }
  TRY(take(first, length));
  hint_ = first + length;
  return std::pair(first, length);
}

ClusterSet Refcounts::used_clusters() const {
  ClusterSet used;
  for (size_t b = 0; b < block_flags_.size(); ++b)
    if (table_[b] != 0 || is_dirty(b)) add_used_clusters(b, used);
  return used;
}

void Refcounts::add_used_clusters(size_t block, ClusterSet& used) const {
  const uint64_t first = block * per_block_;
  if (per_block_ * 2 != cluster_size_) {
    for (uint64_t c = first; c < first + per_block_; ++c)
      if (array_.get(c) != 0) used.insert(c);
    return;
  }
  // The usual width, 16 bits: four counts at a time. A block is a multiple of 64 counts, so no word is cut.
  constexpr uint64_t kOnes = 0x0001000100010001;
  constexpr uint64_t kHighs = 0x8000800080008000;
  const std::byte* at = array_.bytes().data() + first * 2;
  for (uint64_t index = first / 64; index < (first + per_block_) / 64; ++index) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 64; i += 4, at += 8) {
      uint64_t four;
      std::memcpy(&four, at, sizeof four);
      if (four == 0) continue;
      uint64_t bits = 0xf;
      if (((four - kOnes) & ~four & kHighs) != 0) {  // at least one of them is 0
        bits = 0;
        for (unsigned k = 0; k < 4; ++k) bits |= uint64_t{load_be<uint16_t>(at + size_t{2} * k) != 0} << k;
      }
      word |= bits << i;
    }
    if (word != 0) used.add_to_word(index, word);
  }
}

Result<void> Refcounts::move_table(uint64_t blocks_needed) {
  const uint64_t clusters = div_round_up(blocks_needed * 8, cluster_size_);
  if (clusters * cluster_size_ > std::max(kMaxRefcountTableBytes, cluster_size_))
    return make_error(ErrorKind::kNoSpace, fmt::format("{}: the refcount table can't grow further", file_->name()));
  const uint64_t first = TRY(find_free(clusters));
  TRY(take(first, clusters));
  superseded_tables_.emplace_back(table_offset_ / cluster_size_, table_clusters_);
  table_offset_ = first * cluster_size_;
  table_clusters_ = static_cast<uint32_t>(clusters);
  table_changed_ = true;
  return {};
}

Result<void> Refcounts::place_blocks() {
  for (bool again = true; again;) {
    again = false;
    // A margin of one half, so that a growing image does not move its table at every step.
    if (block_flags_.size() * 8 > uint64_t{table_clusters_} * cluster_size_)
      TRY(move_table(std::min(block_flags_.size() * 3 / 2 + 1, std::max(kMaxRefcountTableBytes, cluster_size_) / 8)));
    for (size_t b = 0; b < block_flags_.size(); ++b) {
      if ((block_flags_[b] & kDirty) == 0 || table_[b] != 0) continue;
      table_[b] = TRY(allocate(1)) * cluster_size_;
      table_changed_ = true;
      again = true;
    }
  }
  return {};
}

Result<void> Refcounts::relocate_dirty_blocks() {
  bool table_moved = false;
  std::vector<size_t> moving;
  for (;;) {
    if (!table_moved || block_flags_.size() * 8 > uint64_t{table_clusters_} * cluster_size_) {
      TRY(move_table(std::max<uint64_t>(block_flags_.size() + 1, uint64_t{table_clusters_} * cluster_size_ / 8)));
      for (const auto& [first, count] : superseded_tables_) {
        TRY(decrement(first, count));
        replaced_.emplace_back(first, count);
      }
      superseded_tables_.clear();
      table_moved = true;
    }
    moving.clear();
    for (size_t b = 0; b < block_flags_.size(); ++b)
      if ((block_flags_[b] & (kDirty | kRelocated)) == kDirty) moving.push_back(b);
    if (moving.empty()) return {};
    uint64_t next = TRY(allocate(moving.size()));  // end to end, so that they are written and read in one piece
    for (const size_t b : moving) {
      const uint64_t old = table_[b];
      table_[b] = next++ * cluster_size_;
      block_flags_[b] |= kRelocated;
      if (old == 0) continue;
      TRY(decrement(old / cluster_size_, 1));
      replaced_.emplace_back(old / cluster_size_, 1);
    }
  }
}

std::vector<std::byte> Refcounts::table_bytes() const {
  std::vector<std::byte> out(uint64_t{table_clusters_} * cluster_size_);
  CHECK(table_.size() * 8 <= out.size());
  for (size_t b = 0; b < table_.size(); ++b) store_be<uint64_t>(&out[b * 8], table_[b]);
  return out;
}

Result<void> Refcounts::write_dirty_blocks() {
  for (size_t b = 0; b < block_flags_.size();) {
    if (!is_dirty(b)) {
      ++b;
      continue;
    }
    size_t end = b + 1;
    while (end < block_flags_.size() && (end - b) * cluster_size_ < kWriteBytes && is_dirty(end) &&
           table_[end] == table_[end - 1] + cluster_size_)
      ++end;
    CHECK(table_[b] != 0);
    TRY(file_->write_at(table_[b], array_.bytes().subspan(b * cluster_size_, (end - b) * cluster_size_)));
    if ((end - b) * cluster_size_ >= kWriteBytes) file_->start_write_back(table_[b], (end - b) * cluster_size_);
    for (; b < end; ++b) mark_clean(b);
  }
  return {};
}

}  // namespace varve::qcow2
