#include "qcow2/table_pass.h"

#include <algorithm>

namespace varve::qcow2 {
namespace {

void clear_copied(std::span<be64> words, uint32_t words_per_entry) {
  // COPIED is the top bit of the first byte on disk.
  auto* bytes = reinterpret_cast<unsigned char*>(words.data());
  for (size_t i = 0; i < words.size(); i += words_per_entry) bytes[i * 8] &= 0x7f;
}

bool any_copied(std::span<const be64> words, uint32_t words_per_entry) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(words.data());
  unsigned found = 0;
  for (size_t i = 0; i < words.size(); i += words_per_entry) found |= bytes[i * 8];
  return (found & 0x80) != 0;
}

}  // namespace

Result<void> TablePass::finish_writing() {
  if (!writing_.valid()) return {};
  return writing_.get();
}

Result<void> TablePass::write_marked(Batch& batch, std::span<const uint8_t> marked, std::span<uint64_t> new_offsets) {
  // Marked tables move together to the front.
  std::vector<size_t> origin;
  for (size_t i = 0; i < marked.size(); ++i) {
    if (marked[i] == 0) continue;
    if (origin.size() != i) std::ranges::copy(table_of(batch, i), table_of(batch, origin.size()).begin());
    origin.push_back(i);
  }
  if (origin.empty()) return {};
  const uint64_t first = TRY(refcounts_.allocate(origin.size()));
  written_.emplace_back(first, origin.size());
  for (size_t k = 0; k < origin.size(); ++k) new_offsets[origin[k]] = (first + k) << format_.cluster_bits;
  TRY(finish_writing());  // one write at a time, in order
  std::swap(batch, writing_batch_);
  writing_ = std::async(
      std::launch::async,
      [this, offset = first << format_.cluster_bits, bytes = origin.size() << format_.cluster_bits]() -> Result<void> {
        TRY(file_.write_at(offset, std::as_bytes(std::span(writing_batch_)).first(bytes)));
        file_.start_write_back(offset, bytes);
        return {};
      });
  return {};
}

Result<std::vector<uint8_t>> TablePass::add_references(std::span<const TableReference> references) {
  std::vector<uint8_t> carries_copied(references.size());
  TRY(for_each_batch(references, [&](Batch& batch, size_t count, size_t at) -> Result<void> {
    for (size_t i = 0; i < count; ++i) {
      const Table table = table_of(batch, i);
      TRY(for_each_run(
          references[at + i], table, [&](uint64_t first, uint64_t n) { return refcounts_.increment(first, n); },
          nullptr));
      carries_copied[at + i] = any_copied(table, format_.entry_words()) ? 1 : 0;
    }
    return {};
  }));
  return carries_copied;
}

Result<void> TablePass::drop_references(std::span<const TableReference> references, TableTotals* totals) {
  return for_each_batch(references, [&](Batch& batch, size_t count, size_t at) -> Result<void> {
    for (size_t i = 0; i < count; ++i)
      TRY(for_each_run(
          references[at + i], table_of(batch, i),
          [&](uint64_t first, uint64_t n) { return refcounts_.decrement(first, n); }, totals));
    return {};
  });
}

Result<std::vector<uint64_t>> TablePass::write_without_copied(std::span<const TableReference> references) {
  std::vector<uint64_t> new_offsets(references.size());
  std::vector<uint8_t> marked;
  TRY(for_each_batch(references, [&](Batch& batch, size_t count, size_t at) -> Result<void> {
    clear_copied(batch, format_.entry_words());
    marked.assign(count, 1);
    return write_marked(batch, marked, std::span(new_offsets).subspan(at, count));
  }));
  TRY(finish_writing());
  return new_offsets;
}

// Entry by entry, but whole runs of clusters that are ours alone are settled with one look at their refcounts.
bool TablePass::refresh_table(Table table) {
  const uint64_t cluster_size = format_.cluster_size();
  const uint32_t step = format_.entry_words();
  bool changed = false;
  for (size_t i = 0; i < table.size();) {
    const uint64_t entry = table[i];
    const uint64_t offset = entry & kOffsetMask;
    if ((entry & kEntryCompressed) != 0 || offset == 0) {
      i += step;
      continue;
    }
    size_t end = i + step;
    uint64_t next = offset + cluster_size;
    while (end < table.size()) {
      const uint64_t following = table[end];
      if ((following & kEntryCompressed) != 0 || (following & kOffsetMask) != next) break;
      next += cluster_size;
      end += step;
    }
    const uint64_t first = offset >> format_.cluster_bits;
    const bool all_ours = refcounts_.all_loaded_equal(first, (end - i) / step, 1);
    for (uint64_t cluster = first; i < end; i += step, ++cluster) {
      const uint64_t old = table[i];
      const bool ours = all_ours || refcounts_.get_loaded(cluster) == 1;
      const uint64_t now = ours ? old | kEntryCopied : old & ~kEntryCopied;
      if (now == old) continue;
      table[i] = now;
      changed = true;
    }
  }
  return changed;
}

Result<std::vector<uint64_t>> TablePass::write_with_fresh_copied(std::span<const TableReference> references) {
  std::vector<uint64_t> new_offsets(references.size());
  std::vector<uint8_t> changed;
  TRY(for_each_batch(references, [&](Batch& batch, size_t count, size_t at) -> Result<void> {
    changed.assign(count, 0);
    for (size_t i = 0; i < count; ++i) changed[i] = refresh_table(table_of(batch, i)) ? 1 : 0;
    return write_marked(batch, changed, std::span(new_offsets).subspan(at, count));
  }));
  TRY(finish_writing());
  return new_offsets;
}

}  // namespace varve::qcow2
