#include "check/deep.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "base/endian.h"
#include "check/snapshot_entries.h"

namespace varve::check {

namespace {

// Deflate as QEMU reads it: no header, a window of 4 KiB. The stream has to give a whole cluster; what stands behind it
// in the last sector is not its.
bool inflates(std::span<const std::byte> in, std::span<std::byte> out) {
  z_stream stream{};
  if (inflateInit2(&stream, -12) != Z_OK) return false;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data()));
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&stream, Z_FINISH);
  const bool complete = stream.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK);
  inflateEnd(&stream);
  return complete;
}

bool unpacks_zstd(std::span<const std::byte> in, std::span<std::byte> out) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  if (!context) return false;
  ZSTD_inBuffer source{in.data(), in.size(), 0};
  ZSTD_outBuffer target{out.data(), out.size(), 0};
  while (target.pos < target.size) {
    const size_t before = source.pos + target.pos;
    const size_t result = ZSTD_decompressStream(context.get(), &target, &source);
    if (ZSTD_isError(result) != 0U || source.pos + target.pos == before) return false;
  }
  return true;
}

class DeepCheck {
 public:
  DeepCheck(const ImageFile& file, const Layout& layout, const SnapshotEntries& snapshots, const Report& report,
            Tally& tally)
      : file_(file),
        layout_(layout),
        snapshots_(snapshots),
        report_(report),
        tally_(tally),
        table_(layout.cluster_size()),
        cluster_(layout.cluster_size()) {}

  Result<void> run() {
    TRY(check_l1("the active L1 table", layout_.l1_offset, layout_.l1_size));
    for (const SnapshotEntry& snapshot : snapshots_.entries) {
      if (!layout_.is_aligned(snapshot.l1_offset) || snapshot.l1_size > kMaxL1Bytes / 8) continue;
      TRY(check_l1(fmt::format("the L1 table of snapshot {} ({})", snapshot.id, snapshot.name), snapshot.l1_offset,
                   snapshot.l1_size));
    }
    check_overlaps();
    return {};
  }

 private:
  void found(const std::string& text) {
    report_.line("ERROR " + text);
    ++tally_.corruptions;
  }

  Result<void> check_l1(const std::string& name, uint64_t offset, uint64_t size) {
    const std::vector<uint64_t> l1 = TRY(file_.read_words_inside(offset, size));
    for (uint64_t i = 0; i < l1.size(); ++i) {
      const uint64_t l2_offset = l1[i] & kOffsetMask;
      if (l2_offset == 0) continue;
      const auto [place, is_new] = first_index_.try_emplace(l2_offset, i);
      if (is_new) {
        if (layout_.is_aligned(l2_offset)) TRY(check_l2(l2_offset, i));
      } else if (place->second != i) {
        found(fmt::format("L2 table at {:#x} is reached from l1_index {} and {} ({})", l2_offset, place->second, i,
                          name));
      }
    }
    ranges_.push_back({offset, size * 8, name});
    return {};
  }

  Result<void> check_l2(uint64_t l2_offset, uint64_t l1_index) {
    TRY(file_.read(l2_offset, table_));
    for (uint64_t i = 0; i < layout_.l2_entries(); ++i) {
      const auto entry = load_be<uint64_t>(&table_[i * layout_.l2_entry_bytes()]);
      if (layout_.kind_of(entry) != ClusterKind::kCompressed || layout_.has_data_file()) continue;
      const Layout::Compressed where = layout_.compressed(entry);
      packed_.resize(where.bytes);
      TRY(file_.read(where.offset, packed_));
      if (layout_.compression_type == 0 ? inflates(packed_, cluster_) : unpacks_zstd(packed_, cluster_)) continue;
      found(fmt::format("compressed cluster at {:#x} does not decode: guest offset {:#x}, l2_entry={:x}", where.offset,
                        (l1_index * layout_.l2_entries() + i) << layout_.cluster_bits, entry));
    }
    return {};
  }

  void check_overlaps() {
    ranges_.push_back({0, layout_.cluster_size(), "the header"});
    ranges_.push_back({layout_.refcount_table_offset, layout_.refcount_table_entries() * 8, "the refcount table"});
    ranges_.push_back({layout_.snapshots_offset, snapshots_.table_bytes, "the snapshot table"});
    ranges_.push_back({layout_.crypto_offset, layout_.crypto_length, "the encryption header"});
    if (layout_.nb_bitmaps != 0) {
      ranges_.push_back({layout_.bitmap_directory_offset, layout_.bitmap_directory_size, "the bitmap directory"});
    }
    std::erase_if(ranges_, [](const Range& range) { return range.bytes == 0; });
    std::ranges::sort(ranges_, {}, &Range::offset);
    for (size_t i = 1; i < ranges_.size(); ++i) {
      const Range& before = ranges_[i - 1];
      const Range& range = ranges_[i];
      if (before.offset + before.bytes > range.offset) {
        found(fmt::format("{} and {} overlap at {:#x}", before.name, range.name, range.offset));
      }
    }
  }

  struct Range {
    uint64_t offset;
    uint64_t bytes;
    std::string name;
  };

  const ImageFile& file_;
  const Layout& layout_;
  const SnapshotEntries& snapshots_;
  const Report& report_;
  Tally& tally_;
  std::unordered_map<uint64_t, uint64_t> first_index_;  // of every L2 table
  std::vector<Range> ranges_;
  std::vector<std::byte> table_;
  std::vector<std::byte> cluster_;
  std::vector<std::byte> packed_;
};

}  // namespace

Result<void> check_deep(BlockDevice& device, const Report& report, Tally& tally) {
  ImageFile file(device);
  TRY(file.measure());
  const Layout layout = TRY(read_layout(file));
  // Said already, by the check before.
  const Report silent{.line = [](const std::string&) {}, .error = [](const std::string&) {}};
  Tally ignored;
  const SnapshotEntries snapshots = TRY(read_snapshot_entries(file, layout, Repair::kNone, silent, ignored));
  return DeepCheck(file, layout, snapshots, report, tally).run();
}

}  // namespace varve::check
