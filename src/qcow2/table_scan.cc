#include "qcow2/table_scan.h"

#include "qcow2/padded_read.h"

namespace varve::qcow2 {

Result<std::vector<TableReference>> table_references(std::span<const uint64_t> l1, const EntryFormat& format,
                                                     const std::string& image) {
  std::vector<TableReference> references;
  for (uint64_t i = 0; i < l1.size(); ++i) {
    const uint64_t entry = l1[i];
    if ((entry & ~kEntryCopied) == 0) continue;
    const uint64_t offset = entry & kOffsetMask;
    if ((entry & ~(kEntryCopied | kOffsetMask)) != 0 || offset % format.cluster_size() != 0)
      return corruption(image, offset,
                        fmt::format("L1 entry {} ({:#x}) is misaligned or has reserved bits set", i, entry));
    references.push_back({i, offset});
  }
  return references;
}

Result<void> TableScan::read_batch(std::span<const TableReference> references, Batch& batch) const {
  const uint64_t cluster_size = format_.cluster_size();
  const uint64_t file_size = TRY(file_.size());
  batch.resize(references.size() * words_per_table());
  for (size_t i = 0; i < references.size();) {
    size_t end = i + 1;
    while (end < references.size() && references[end].host_offset == references[end - 1].host_offset + cluster_size)
      ++end;
    const uint64_t last = references[end - 1].host_offset;
    if (last >= file_size)
      return corruption(file_.name(), last,
                        fmt::format("L2 table at offset {:#x} lies outside of the file of {} bytes", last, file_size));
    const auto piece = std::span(batch).subspan(i * words_per_table(), (end - i) * words_per_table());
    TRY(read_padded(file_, references[i].host_offset, std::as_writable_bytes(piece)));  // the last may be cut
    i = end;
  }
  return {};
}

}  // namespace varve::qcow2
