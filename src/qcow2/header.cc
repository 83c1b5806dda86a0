#include "qcow2/header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

// The header as it stands on disk (specification, "Header").
struct RawHeader {
  be32 magic;
  be32 version;
  be64 backing_file_offset;
  be32 backing_file_size;
  be32 cluster_bits;
  be64 size;
  be32 crypt_method;
  be32 l1_size;
  be64 l1_table_offset;
  be64 refcount_table_offset;
  be32 refcount_table_clusters;
  be32 nb_snapshots;
  be64 snapshots_offset;
  // Version 3:
  be64 incompatible_features;
  be64 compatible_features;
  be64 autoclear_features;
  be32 refcount_order;
  be32 header_length;
  uint8_t compression_type;
  uint8_t padding[7];
};
static_assert(sizeof(RawHeader) == 112);
constexpr uint32_t kV2Length = 72;
constexpr uint32_t kV3Length = 104;
constexpr size_t kFeatureNameEntry = 48;

struct FeatureName {
  uint8_t type;
  uint8_t bit;
  std::string_view name;
};
constexpr std::array<FeatureName, 8> kFeatureNames = {{{0, 0, "dirty bit"},
                                                       {0, 1, "corrupt bit"},
                                                       {0, 2, "external data file"},
                                                       {0, 3, "compression type"},
                                                       {0, 4, "extended L2 entries"},
                                                       {1, 0, "lazy refcounts"},
                                                       {2, 0, "bitmaps"},
                                                       {2, 1, "raw external data"}}};

Error corrupt(BlockDevice& file, uint64_t offset, const std::string& what) {
  return corruption(file.name(), offset, what);
}

std::string text(std::span<const std::byte> bytes) {
  std::string s(bytes.size(), '\0');
  if (!bytes.empty()) std::memcpy(s.data(), bytes.data(), bytes.size());
  return s;
}

std::vector<std::byte> bytes_of(std::string_view s) {
  std::vector<std::byte> b(s.size());
  if (!s.empty()) std::memcpy(b.data(), s.data(), s.size());
  return b;
}

// One table named by the header: cluster-aligned, not above the first cluster, inside the file.
struct TableRange {
  const char* name;
  uint64_t field_offset;  // of the header field that names it
  uint64_t offset;
  uint64_t bytes;
};

Result<void> check_table(BlockDevice& file, const TableRange& t, uint64_t cluster_size, uint64_t file_size) {
  if (t.bytes == 0) return {};
  if (t.offset % cluster_size != 0)
    return corrupt(file, t.field_offset, fmt::format("{} at offset {:#x} is not cluster-aligned", t.name, t.offset));
  if (t.offset < cluster_size)
    return corrupt(file, t.field_offset, fmt::format("{} at offset {:#x} overlaps the header", t.name, t.offset));
  const auto end = checked_add(t.offset, t.bytes);
  if (!end || *end > align_up(file_size, cluster_size))
    return corrupt(file, t.field_offset,
                   fmt::format("{} (offset {:#x}, {} bytes) lies outside of the file of {} bytes", t.name, t.offset,
                               t.bytes, file_size));
  return {};
}

Result<void> check_overlaps(BlockDevice& file, std::span<const TableRange> tables) {
  for (size_t i = 0; i < tables.size(); ++i)
    for (size_t j = i + 1; j < tables.size(); ++j) {
      const TableRange &a = tables[i], &b = tables[j];
      if (a.bytes == 0 || b.bytes == 0) continue;
      if (a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes)
        return corrupt(file, a.field_offset, fmt::format("{} and {} overlap", a.name, b.name));
    }
  return {};
}

// Names of unknown incompatible features, from the image's own table where it has them.
std::string unknown_features(uint64_t bits, std::vector<std::byte> table) {
  table.resize(align_up(table.size(), kFeatureNameEntry));  // the last name may be cut short
  std::string out;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((bits >> bit & 1) == 0) continue;
    std::string name = fmt::format("bit {}", bit);
    for (size_t at = 0; at + kFeatureNameEntry <= table.size(); at += kFeatureNameEntry) {
      if (table[at] != std::byte{0} || std::to_integer<unsigned>(table[at + 1]) != bit) continue;
      const std::string raw = text(std::span(table).subspan(at + 2, kFeatureNameEntry - 2));
      name = fmt::format("{} (bit {})", raw.substr(0, raw.find('\0')), bit);
      for (char& c : name)  // the image's words, not ours: nothing of them may speak to a terminal
        if (c < 0x20 || c > 0x7e) c = '?';
      break;
    }
    out += (out.empty() ? "" : ", ") + name;
  }
  return out;
}

Result<BitmapsExtension> parse_bitmaps(BlockDevice& file, uint64_t at, std::span<const std::byte> data,
                                       uint64_t cluster_size, uint64_t file_size) {
  if (data.size() != 24) return corrupt(file, at, fmt::format("bitmaps extension of {} bytes, not 24", data.size()));
  BitmapsExtension ext;
  ext.nb_bitmaps = load_be<uint32_t>(data.data());
  ext.directory_size = load_be<uint64_t>(data.data() + 8);
  ext.directory_offset = load_be<uint64_t>(data.data() + 16);
  if (ext.nb_bitmaps == 0 || ext.nb_bitmaps > 65535)
    return corrupt(file, at, fmt::format("bitmaps extension with {} bitmaps (1 to 65535)", ext.nb_bitmaps));
  if (ext.directory_size == 0 || ext.directory_size > (uint64_t{1024} * 65535))
    return corrupt(file, at, fmt::format("bitmap directory of {} bytes", ext.directory_size));
  TRY(check_table(file, {"bitmap directory", at, ext.directory_offset, ext.directory_size}, cluster_size, file_size));
  return ext;
}

std::vector<std::byte> serialize_bitmaps(const BitmapsExtension& ext) {
  std::vector<std::byte> data(24);
  store_be<uint32_t>(&data[0], ext.nb_bitmaps);
  store_be<uint64_t>(&data[8], ext.directory_size);
  store_be<uint64_t>(&data[16], ext.directory_offset);
  return data;
}

struct ParsedExtensions {
  std::vector<std::byte> feature_names;
};

Result<ParsedExtensions> parse_extensions(BlockDevice& file, std::span<const std::byte> cluster, uint64_t end,
                                          uint64_t file_size, Header& h) {
  ParsedExtensions parsed;
  uint64_t at = h.header_length;
  while (at + 8 <= end) {
    const uint32_t type = load_be<uint32_t>(&cluster[at]);
    const uint32_t length = load_be<uint32_t>(&cluster[at + 4]);
    if (type == kExtensionEnd) break;
    if (length > end - at - 8)
      return corrupt(file, at, fmt::format("header extension {:#x} of {} bytes runs past the header", type, length));
    const auto data = cluster.subspan(at + 8, length);
    switch (type) {
      case kExtensionBackingFormat:
        if (length >= 16) return corrupt(file, at, "backing format name is too long");
        h.backing_format = text(data);
        break;
      case kExtensionFeatureNames:
        parsed.feature_names.assign(data.begin(), data.end());
        break;
      case kExtensionDataFile:
        h.data_file = text(data);
        break;
      case kExtensionBitmaps:
        if ((h.autoclear_features & kAutoclearBitmaps) != 0)
          h.bitmaps = TRY(parse_bitmaps(file, at, data, h.cluster_size(), file_size));
        break;
      default:
        break;
    }
    h.extensions.push_back({type, {data.begin(), data.end()}});
    at = std::min<uint64_t>(align_up(at + 8 + length, 8), end);
  }
  if (at < end && at + 8 > end)
    return corrupt(file, at, "the header extensions run into the backing file name, or past the header");
  return parsed;
}

Result<void> parse_fixed_part(BlockDevice& file, const RawHeader& raw, Header& h) {
  if (raw.magic != kMagic) return corrupt(file, 0, "is not a qcow2 image (wrong magic number)");
  h.version = raw.version;
  if (h.version != 2 && h.version != 3) {
    Error e = make_error(ErrorKind::kUnsupported,
                         fmt::format("{}: qcow2 version {} is not supported (2 and 3 are)", file.name(), h.version));
    e.path = file.name();
    e.offset = 4;
    return e;
  }
  h.cluster_bits = raw.cluster_bits;
  if (h.cluster_bits < kMinClusterBits || h.cluster_bits > kMaxClusterBits)
    return corrupt(file, 20, fmt::format("cluster size 2^{} is outside of 2^9 to 2^21", h.cluster_bits));
  h.size = raw.size;
  if (raw.crypt_method > 2)
    return corrupt(file, 32, fmt::format("unknown encryption method {}", uint32_t{raw.crypt_method}));
  h.crypt_method = static_cast<CryptMethod>(uint32_t{raw.crypt_method});
  h.l1_size = raw.l1_size;
  h.l1_table_offset = raw.l1_table_offset;
  h.refcount_table_offset = raw.refcount_table_offset;
  h.refcount_table_clusters = raw.refcount_table_clusters;
  h.nb_snapshots = raw.nb_snapshots;
  h.snapshots_offset = raw.snapshots_offset;
  if (h.version == 2) {
    h.header_length = kV2Length;
    return {};
  }
  h.incompatible_features = raw.incompatible_features;
  h.compatible_features = raw.compatible_features;
  h.autoclear_features = raw.autoclear_features;
  h.refcount_order = raw.refcount_order;
  h.header_length = raw.header_length;
  if (h.header_length < kV3Length || h.header_length > h.cluster_size() || h.header_length % 8 != 0)
    return corrupt(
        file, 100,
        fmt::format("header length {} is outside of {} to {}", h.header_length, kV3Length, h.cluster_size()));
  if (h.refcount_order > 6)
    return corrupt(file, 96, fmt::format("refcount width 2^{} exceeds 64 bits", h.refcount_order));
  const uint8_t compression = h.header_length > kV3Length ? raw.compression_type : uint8_t{0};
  if (compression > 1) return corrupt(file, 104, fmt::format("unknown compression type {}", compression));
  h.compression_type = static_cast<CompressionType>(compression);
  return {};
}

Result<void> check_limits(BlockDevice& file, const Header& h, uint64_t file_size) {
  if ((h.incompatible_features & kIncompatCompression) == 0 && h.compression_type != CompressionType::kZlib)
    return corrupt(file, 104, "compression type is set without its incompatible feature bit");
  if ((h.incompatible_features & kIncompatCompression) != 0 && h.compression_type == CompressionType::kZlib)
    return corrupt(file, 72, "the compression type feature bit is set for zlib");
  if (h.has_extended_l2() && h.cluster_bits < 14)
    return corrupt(file, 20,
                   fmt::format("extended L2 entries need clusters of 16 KiB or more, not {}", h.cluster_size()));
  const uint64_t l1_bytes = uint64_t{h.l1_size} * 8;
  if (l1_bytes > kMaxL1Bytes)
    return corrupt(file, 36, fmt::format("L1 table of {} entries exceeds the limit of {}", h.l1_size, kMaxL1Bytes / 8));
  const uint64_t table_bytes = uint64_t{h.refcount_table_clusters} * h.cluster_size();
  const auto repair = [&](const char* what) { return fmt::format("`qemu-img check -r all {}` {}", file.name(), what); };
  if (h.refcount_table_clusters == 0)
    return corrupt(file, 56, "has no refcount table").with_note(repair("makes a new one; copy the file first"));
  if (table_bytes > std::max(kMaxRefcountTableBytes, h.cluster_size()))
    return corrupt(file, 56,
                   fmt::format("refcount table of {} clusters exceeds the limit of {} bytes", h.refcount_table_clusters,
                               kMaxRefcountTableBytes));
  if (h.nb_snapshots > kMaxSnapshots)
    return corrupt(file, 60, fmt::format("{} snapshots exceed the limit of {}", h.nb_snapshots, kMaxSnapshots))
        .with_note(repair("removes those above the limit; copy the file first"));
  if (h.size > uint64_t{1} << 62)
    return corrupt(file, 24, fmt::format("virtual size of {} bytes is too large", h.size));
  if (h.l1_entries_for(h.size) > h.l1_size)
    return corrupt(file, 36,
                   fmt::format("L1 table of {} entries is too small for a disk of {} bytes (needs {})", h.l1_size,
                               h.size, h.l1_entries_for(h.size)));
  const std::array<TableRange, 4> tables = {
      {{"L1 table", 40, h.l1_table_offset, l1_bytes},
       {"refcount table", 48, h.refcount_table_offset, table_bytes},
       // Its length is known only when it is read; a header of 40 bytes per entry is the least it can have.
       {"snapshot table", 64, h.snapshots_offset, uint64_t{h.nb_snapshots} * 40},
       {"bitmap directory", h.header_length, h.bitmaps ? h.bitmaps->directory_offset : 0,
        h.bitmaps ? h.bitmaps->directory_size : 0}}};
  for (const TableRange& t : tables) TRY(check_table(file, t, h.cluster_size(), file_size));
  return check_overlaps(file, tables);
}

}  // namespace

uint64_t Header::l1_entries_for(uint64_t bytes) const {
  return div_round_up(bytes, bytes_per_l2_table());
}

Result<Header> read_header(BlockDevice& file) {
  const uint64_t file_size = TRY(file.size());
  if (file_size < kV2Length)
    return corrupt(file, 0, fmt::format("is not a qcow2 image ({} bytes are less than a header)", file_size));
  RawHeader raw{};
  std::array<std::byte, sizeof raw> start{};
  TRY(file.read_at(0, std::span(start).first(std::min<uint64_t>(file_size, start.size()))));
  std::memcpy(static_cast<void*>(&raw), start.data(), sizeof raw);
  if (raw.magic == kMagic && raw.version == 3 && file_size < kV3Length)
    return corrupt(file, 100,
                   fmt::format("the header of {} bytes runs past the end of the file of {}", kV3Length, file_size));
  Header h;
  TRY(parse_fixed_part(file, raw, h));

  std::vector<std::byte> cluster(h.cluster_size());
  TRY(file.read_at(0, std::span(cluster).first(std::min<uint64_t>(file_size, cluster.size()))));
  if (h.header_length > sizeof raw)
    h.unknown_fields.assign(cluster.begin() + sizeof raw, cluster.begin() + h.header_length);
  const uint64_t backing_offset = raw.backing_file_offset;
  if (backing_offset > h.cluster_size())
    return corrupt(file, 8,
                   fmt::format("backing file name at offset {:#x} lies outside of the first cluster", backing_offset));
  if (backing_offset != 0 && backing_offset < h.header_length)
    return corrupt(file, 8, fmt::format("backing file name at offset {:#x} overlaps the header", backing_offset));
  const uint64_t extensions_end = backing_offset != 0 ? backing_offset : h.cluster_size();
  const ParsedExtensions parsed = TRY(parse_extensions(file, cluster, extensions_end, file_size, h));
  if (const uint64_t unknown = h.incompatible_features & ~uint64_t{kIncompatKnown}; unknown != 0) {
    Error e =
        make_error(ErrorKind::kUnsupported, fmt::format("{}: uses qcow2 features that this version does not know: {}",
                                                        file.name(), unknown_features(unknown, parsed.feature_names)));
    e.path = file.name();
    e.offset = 72;
    return std::move(e).with_note("a newer program made the image; nothing was changed");
  }
  if (backing_offset != 0 && raw.backing_file_size != 0) {
    const uint32_t length = raw.backing_file_size;
    if (length > kMaxBackingNameBytes || length > h.cluster_size() - backing_offset)
      return corrupt(file, 16, fmt::format("backing file name of {} bytes is too long", length));
    h.backing_file = text(std::span(cluster).subspan(backing_offset, length));
  }
  TRY(check_limits(file, h, file_size));
  h.size = align_down(h.size, 512);  // QEMU counts whole sectors; what is left over belongs to nobody
  return h;
}

Result<SerializedHeader> serialize_header(const Header& h, uint64_t backing_name_at) {
  SerializedHeader result;
  std::vector<std::byte>& out = result.cluster;
  out.resize(h.cluster_size());
  RawHeader raw{};
  raw.magic = kMagic;
  raw.version = h.version;
  raw.cluster_bits = h.cluster_bits;
  raw.size = h.size;
  raw.crypt_method = static_cast<uint32_t>(h.crypt_method);
  raw.l1_size = h.l1_size;
  raw.l1_table_offset = h.l1_table_offset;
  raw.refcount_table_offset = h.refcount_table_offset;
  raw.refcount_table_clusters = h.refcount_table_clusters;
  raw.nb_snapshots = h.nb_snapshots;
  raw.snapshots_offset = h.snapshots_offset;
  raw.incompatible_features = h.incompatible_features;
  raw.compatible_features = h.compatible_features;
  raw.autoclear_features = h.autoclear_features;
  raw.refcount_order = h.refcount_order;
  const uint64_t known_length = h.version == 2 ? kV2Length : uint64_t{sizeof raw};
  const uint64_t unknown_bytes = h.version == 2 ? 0 : h.unknown_fields.size();
  raw.header_length = static_cast<uint32_t>(known_length + unknown_bytes);
  raw.compression_type = static_cast<uint8_t>(h.compression_type);
  uint64_t at = raw.header_length;

  const auto fits = [&](uint64_t bytes) { return at + bytes + 8 <= out.size(); };  // 8: the end marker
  const auto put = [&](uint32_t type, std::span<const std::byte> data) -> Result<void> {
    if (!fits(8 + align_up(data.size(), 8)))
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("header extensions do not fit into a cluster of {} bytes", out.size()));
    store_be<uint32_t>(&out[at], type);
    store_be<uint32_t>(&out[at + 4], static_cast<uint32_t>(data.size()));
    if (!data.empty()) std::memcpy(&out[at + 8], data.data(), data.size());
    at += 8 + align_up(data.size(), 8);
    return {};
  };

  if (h.backing_format) TRY(put(kExtensionBackingFormat, bytes_of(*h.backing_format)));
  if (h.data_file) TRY(put(kExtensionDataFile, bytes_of(*h.data_file)));
  for (const HeaderExtension& e : h.extensions)
    if (e.type == kExtensionCrypto) TRY(put(e.type, e.data));
  std::vector<std::pair<uint32_t, std::vector<std::byte>>> rest;
  if (h.bitmaps) rest.emplace_back(kExtensionBitmaps, serialize_bitmaps(*h.bitmaps));
  uint64_t rest_bytes = 0;
  for (const HeaderExtension& e : h.extensions) {
    const bool rebuilt = e.type == kExtensionBackingFormat || e.type == kExtensionDataFile ||
                         e.type == kExtensionCrypto || e.type == kExtensionFeatureNames || e.type == kExtensionBitmaps;
    if (!rebuilt) rest.emplace_back(e.type, e.data);
  }
  for (const auto& [type, data] : rest) rest_bytes += 8 + align_up(data.size(), 8);
  const uint64_t name_bytes = h.backing_file ? h.backing_file->size() : 0;
  // The feature names are a courtesy to older programs; in tiny clusters they give way, as QEMU's do.
  if (h.version >= 3 && fits(8 + kFeatureNames.size() * kFeatureNameEntry + rest_bytes + name_bytes)) {
    std::vector<std::byte> table(kFeatureNames.size() * kFeatureNameEntry);
    for (size_t i = 0; i < kFeatureNames.size(); ++i) {
      std::byte* entry = &table[i * kFeatureNameEntry];
      entry[0] = std::byte{kFeatureNames[i].type};
      entry[1] = std::byte{kFeatureNames[i].bit};
      std::memcpy(entry + 2, kFeatureNames[i].name.data(), kFeatureNames[i].name.size());
    }
    TRY(put(kExtensionFeatureNames, table));
  }
  for (const auto& [type, data] : rest) TRY(put(type, data));
  at += 8;  // end of extensions: type 0, length 0
  result.extensions_end = at;
  if (h.backing_file) {
    at = std::max(at, backing_name_at);
    if (name_bytes > kMaxBackingNameBytes || at + name_bytes > out.size())
      return make_error(ErrorKind::kInvalidArgument,
                        fmt::format("backing file name of {} bytes does not fit into the header", name_bytes));
    std::memcpy(&out[at], h.backing_file->data(), name_bytes);
    raw.backing_file_offset = at;
    raw.backing_file_size = static_cast<uint32_t>(name_bytes);
    at += name_bytes;
  }
  result.end = at;
  std::memcpy(out.data(), &raw, known_length);
  if (unknown_bytes != 0) std::memcpy(&out[known_length], h.unknown_fields.data(), unknown_bytes);
  return result;
}

void patch_header_sector(const Header& h, std::span<std::byte, kHeaderSectorSize> sector) {
  RawHeader raw{};
  const size_t length = h.version == 2 ? kV2Length : kV3Length;
  std::memcpy(static_cast<void*>(&raw), sector.data(), length);
  raw.size = h.size;
  raw.l1_size = h.l1_size;
  raw.l1_table_offset = h.l1_table_offset;
  raw.refcount_table_offset = h.refcount_table_offset;
  raw.refcount_table_clusters = h.refcount_table_clusters;
  raw.nb_snapshots = h.nb_snapshots;
  raw.snapshots_offset = h.snapshots_offset;
  raw.autoclear_features = h.autoclear_features;
  std::memcpy(sector.data(), &raw, length);
}

}  // namespace varve::qcow2
