#include "check/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::check {

namespace {

constexpr uint32_t kMagic = 0x514649fb;
constexpr uint64_t kV2Length = 72;
constexpr uint64_t kV3Length = 104;

constexpr uint32_t kExtensionBackingFormat = 0xe2792aca;
constexpr uint32_t kExtensionFeatureNames = 0x6803f857;
constexpr uint32_t kExtensionCrypto = 0x0537be77;
constexpr uint32_t kExtensionBitmaps = 0x23852875;

Error bad(std::string message) {
  return make_error(ErrorKind::kCorrupt, std::move(message));
}

Result<void> check_table(const Layout& layout, uint64_t offset, uint64_t entries, uint64_t entry_bytes, uint64_t limit,
                         const char* name) {
  if (entries > limit / entry_bytes) return bad(fmt::format("{} too large", name));
  if (static_cast<uint64_t>(INT64_MAX) - entries * entry_bytes < offset || !layout.is_aligned(offset)) {
    return bad(fmt::format("{} offset invalid", name));
  }
  return {};
}

Result<void> read_bitmaps_extension(Layout& layout, std::span<const std::byte> data) {
  if (data.size() != 24) return bad("bitmaps_ext: Invalid extension length");
  if ((layout.autoclear & kAutoclearBitmaps) == 0) {
    layout.has_untrusted_bitmaps = true;
    return {};
  }
  const auto count = load_be<uint32_t>(data.data());
  if (load_be<uint32_t>(data.data() + 4) != 0) return bad("bitmaps_ext: Reserved field is not zero");
  const auto bytes = load_be<uint64_t>(data.data() + 8);
  const auto offset = load_be<uint64_t>(data.data() + 16);
  if (count > kMaxBitmaps) {
    return bad(fmt::format("bitmaps_ext: Image has {} bitmaps, exceeding the QEMU supported maximum of {}", count,
                           kMaxBitmaps));
  }
  if (count == 0) return bad("found bitmaps extension with zero bitmaps");
  if (!layout.is_aligned(offset)) return bad("bitmaps_ext: invalid bitmap directory offset");
  if (bytes > kMaxBitmapDirectoryBytes) {
    return bad(fmt::format("bitmaps_ext: bitmap directory size ({}) exceeds the maximum supported size ({})", bytes,
                           kMaxBitmapDirectoryBytes));
  }
  layout.nb_bitmaps = count;
  layout.bitmap_directory_offset = offset;
  layout.bitmap_directory_size = bytes;
  return {};
}

Result<void> read_crypto_extension(Layout& layout, std::span<const std::byte> data) {
  if (layout.crypt_method != 2) return bad("CRYPTO header extension only expected with LUKS encryption method");
  if (data.size() != 16) {
    return bad(fmt::format("CRYPTO header extension size {}, but expected size 16", data.size()));
  }
  layout.has_crypto_extension = true;
  layout.crypto_offset = load_be<uint64_t>(data.data());
  layout.crypto_length = load_be<uint64_t>(data.data() + 8);
  if (!layout.is_aligned(layout.crypto_offset)) {
    return bad(fmt::format("Encryption header offset '{}' is not a multiple of cluster size '{}'", layout.crypto_offset,
                           layout.cluster_size()));
  }
  // QEMU reads the LUKS header here, and fails where there is none.
  constexpr auto kLimit = static_cast<uint64_t>(INT64_MAX);
  if (layout.crypto_offset > kLimit || layout.crypto_length > kLimit - layout.crypto_offset) {
    return bad("Unable to read encryption header");
  }
  return {};
}

// Names of unknown incompatible features: the image may bring its own words for them, in the order of its table, which
// ends at an entry without a name. The last entry may be cut short.
std::string feature_names(uint64_t bits, std::vector<std::byte> table) {
  constexpr size_t kEntry = 48;
  table.resize(table.size() + kEntry);
  std::string names;
  for (size_t at = 0; at + kEntry <= table.size() && table[at + 2] != std::byte{0}; at += kEntry) {
    const auto bit = std::to_integer<unsigned>(table[at + 1]);
    if (table[at] != std::byte{0} || bit > 63 || (bits >> bit & 1) == 0) continue;
    bits &= ~(uint64_t{1} << bit);
    if (!names.empty()) names += ", ";
    for (size_t i = at + 2; i < at + kEntry && table[i] != std::byte{0}; ++i) {
      const auto c = std::to_integer<char>(table[i]);
      names += c >= 0x20 && c < 0x7f ? c : '?';
    }
  }
  if (bits != 0) names += fmt::format("{}Unknown incompatible feature: {:x}", names.empty() ? "" : ", ", bits);
  return names;
}

// The extensions, and where QEMU would have none the feature names for an error message.
Result<std::vector<std::byte>> read_extensions(const ImageFile& file, Layout& layout, uint64_t at, uint64_t end) {
  std::vector<std::byte> names;
  while (at < end) {
    std::array<std::byte, 8> head{};
    TRY(file.read(at, head));
    const auto type = load_be<uint32_t>(head.data());
    const auto length = load_be<uint32_t>(head.data() + 4);
    at += head.size();
    if (at > end || length > end - at) return bad("Header extension too large");
    if (type == 0) break;
    std::vector<std::byte> data(length);
    TRY(file.read(at, data));
    switch (type) {
      case kExtensionBackingFormat:
        if (length >= 16) return bad(fmt::format("ERROR: ext_backing_format: len={} too large (>=16)", length));
        break;
      case kExtensionFeatureNames:
        names = std::move(data);
        break;
      case kExtensionCrypto:
        TRY(read_crypto_extension(layout, data));
        break;
      case kExtensionBitmaps:
        TRY(read_bitmaps_extension(layout, data));
        break;
      default:
        break;
    }
    at += align_up(length, 8);
  }
  return names;
}

Result<void> check_compression(const Layout& layout) {
  const bool has_bit = (layout.incompatible & kIncompatibleCompression) != 0;
  if (layout.compression_type > 1) {
    return bad(fmt::format("qcow2: unknown compression type: {}", layout.compression_type));
  }
  if (layout.compression_type == 0 && has_bit) {
    return bad("qcow2: Compression type incompatible feature bit must not be set");
  }
  if (layout.compression_type != 0 && !has_bit) {
    return bad("qcow2: Compression type incompatible feature bit must be set");
  }
  return {};
}

// `disk_bytes`: the size as the header has it, which need not be whole sectors.
Result<void> check_l1(const Layout& layout, uint64_t disk_bytes) {
  TRY(check_table(layout, layout.l1_offset, layout.l1_size, 8, kMaxL1Bytes, "Active L1 table"));
  const uint64_t needed = div_round_up(disk_bytes, layout.l2_entries() * layout.cluster_size());
  if (needed > INT32_MAX) return bad("Image is too big");
  if (layout.l1_size < needed) return bad("L1 table is too small");
  return {};
}

}  // namespace

ClusterKind Layout::kind_of(uint64_t entry) const {
  if ((entry & kCompressedFlag) != 0) return ClusterKind::kCompressed;
  const uint64_t offset = entry & kOffsetMask;
  if ((entry & kZero) != 0 && !has_extended_l2()) {
    return offset != 0 ? ClusterKind::kZeroAllocated : ClusterKind::kZeroPlain;
  }
  if (offset != 0) return ClusterKind::kNormal;
  // Cluster 0 of an external data file is a place like any other; COPIED tells it from none.
  return has_data_file() && (entry & kCopied) != 0 ? ClusterKind::kNormal : ClusterKind::kUnallocated;
}

Layout::Compressed Layout::compressed(uint64_t entry) const {
  const unsigned shift = 62 - (cluster_bits - 8);
  const uint64_t offset = entry & ((uint64_t{1} << shift) - 1);
  const uint64_t sectors = (entry >> shift & ((uint64_t{1} << (cluster_bits - 8)) - 1)) + 1;
  return {offset, sectors * 512 - offset % 512};
}

Result<void> ImageFile::measure() {
  device_size_ = TRY(device_.size());
  size_ = align_up(device_size_, 512);
  return {};
}

Result<void> ImageFile::read(uint64_t offset, std::span<std::byte> buffer) const {
  if (offset > static_cast<uint64_t>(INT64_MAX) - buffer.size()) {
    return system_error(EIO, fmt::format("cannot read at offset {:#x} of '{}'", offset, device_.name()));
  }
  const uint64_t there = offset < device_size_ ? std::min<uint64_t>(buffer.size(), device_size_ - offset) : 0;
  if (there != 0) TRY(device_.read_at(offset, buffer.first(there)));
  std::ranges::fill(buffer.subspan(there), std::byte{0});
  for (const auto& [at, bytes] : planned_) {
    const uint64_t from = std::max(at, offset);
    const uint64_t end = std::min(at + bytes.size(), offset + buffer.size());
    if (from < end) std::ranges::copy(std::span(bytes).subspan(from - at, end - from), &buffer[from - offset]);
  }
  return {};
}

Result<std::vector<uint64_t>> ImageFile::read_words(uint64_t offset, uint64_t count) const {
  std::vector<uint64_t> words(count);
  TRY(read(offset, std::as_writable_bytes(std::span(words))));
  for (uint64_t& word : words) word = load_be<uint64_t>(&word);
  return words;
}

Result<std::vector<uint64_t>> ImageFile::read_words_inside(uint64_t offset, uint64_t count) const {
  const uint64_t left = size() - std::min(size(), offset);
  return read_words(offset, std::min(count, div_round_up(left, 8)));
}

Result<Layout> read_layout(const ImageFile& file) {
  std::array<std::byte, 112> raw{};
  TRY(file.read(0, raw));
  const auto u32 = [&](size_t at) { return load_be<uint32_t>(&raw[at]); };
  const auto u64 = [&](size_t at) { return load_be<uint64_t>(&raw[at]); };
  if (u32(0) != kMagic) return bad("Image is not in qcow2 format");
  Layout layout;
  layout.version = u32(4);
  if (layout.version < 2 || layout.version > 3) return bad(fmt::format("Unsupported qcow2 version {}", layout.version));
  layout.cluster_bits = u32(20);
  if (layout.cluster_bits < 9 || layout.cluster_bits > 21) {
    return bad(fmt::format("Unsupported cluster size: 2^{}", layout.cluster_bits));
  }
  uint64_t header_length = kV2Length;
  if (layout.version == 3) {
    layout.incompatible = u64(kFieldIncompatible);
    layout.autoclear = u64(kFieldAutoclear);
    layout.refcount_order = u32(96);
    header_length = u32(100);
    if (header_length < kV3Length) return bad("qcow2 header too short");
  }
  if (header_length > layout.cluster_size()) return bad("qcow2 header exceeds cluster size");
  const uint64_t backing_offset = u64(8);
  if (backing_offset > layout.cluster_size()) return bad("Invalid backing file offset");
  if (header_length > kV3Length) layout.compression_type = std::to_integer<uint8_t>(raw[104]);
  TRY(check_compression(layout));
  const uint64_t extensions_end = backing_offset != 0 ? backing_offset : layout.cluster_size();
  if (const uint64_t unknown = layout.incompatible & ~kIncompatibleKnown; unknown != 0) {
    Layout ignored = layout;
    auto names = read_extensions(file, ignored, header_length, extensions_end);
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("Unsupported qcow2 feature(s): {}",
                                  feature_names(unknown, names ? std::move(*names) : std::vector<std::byte>())));
  }
  if (layout.has_extended_l2() && layout.cluster_bits < 14) {
    return bad(fmt::format("Unsupported subcluster size: {}", layout.cluster_size() / 32));
  }
  if (layout.refcount_order > 6) return bad("Reference count entry width too large; may not exceed 64 bits");
  layout.crypt_method = u32(32);
  layout.virtual_size = align_down(u64(24), 512);
  layout.refcount_table_offset = u64(kFieldRefcountTable);
  layout.refcount_table_clusters = u32(56);
  layout.nb_snapshots = u32(kFieldSnapshots);
  layout.snapshots_offset = u64(64);
  layout.l1_size = u32(36);
  layout.l1_offset = u64(40);
  TRY(check_table(layout, layout.refcount_table_offset, layout.refcount_table_clusters, layout.cluster_size(),
                  kMaxRefcountTableBytes, "Reference count table"));
  TRY(check_l1(layout, u64(24)));
  if (layout.crypt_method > 2)
    return bad(fmt::format("Unsupported encryption method {}", static_cast<int32_t>(layout.crypt_method)));
  TRY(read_extensions(file, layout, header_length, extensions_end));
  if (layout.crypt_method == 2 && !layout.has_crypto_extension) return bad("Missing CRYPTO header for crypt method 2");
  const uint32_t backing_length = u32(16);
  if (backing_offset != 0 && backing_length > std::min<uint64_t>(1023, layout.cluster_size() - backing_offset)) {
    return bad("Backing file name too long");
  }
  return layout;
}

}  // namespace varve::check
