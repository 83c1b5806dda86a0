#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/image.h"
#include "qcow2/refcount_array.h"
#include "qcow2/table_entry.h"

namespace varve::qcow2 {
namespace {

Error invalid(const std::string& what) {
  return make_error(ErrorKind::kInvalidArgument, what);
}

// Where everything of a new image lies, in clusters: header, refcount table, refcount blocks, L1, LUKS
// header, L2 tables, data.
struct Plan {
  uint64_t table_clusters = 1;
  uint64_t blocks = 1;
  uint64_t l1_clusters = 0;
  uint64_t luks_clusters = 0;
  uint64_t l2_tables = 0;
  uint64_t data_clusters = 0;  // in this file

  uint64_t first_block() const { return 1 + table_clusters; }
  uint64_t first_l1() const { return first_block() + blocks; }
  uint64_t first_luks() const { return first_l1() + l1_clusters; }
  uint64_t first_l2() const { return first_luks() + luks_clusters; }
  uint64_t first_data() const { return first_l2() + l2_tables; }
  uint64_t all() const { return first_data() + data_clusters; }
};

Result<void> check_options(const CreateOptions& o) {
  if (o.version != 2 && o.version != 3)
    return invalid(fmt::format("qcow2 version {} does not exist (2 and 3 do)", o.version));
  if (!std::has_single_bit(o.cluster_size) || o.cluster_size < 512 || o.cluster_size > (2u << 20))
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  if (!std::has_single_bit(o.refcount_bits) || o.refcount_bits > 64)
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  if (o.version == 2 && o.refcount_bits != 16)
    return invalid(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)");
  if (o.version == 2 && o.lazy_refcounts)
    return invalid("Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)");
  if (o.version == 2 && o.extended_l2)
    return invalid(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)");
  if (o.version == 2 && o.compression_type != CompressionType::kZlib)
    return invalid(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or "
        "greater)");
  if (o.extended_l2 && o.cluster_size < 16384)
    return invalid("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  if (o.backing_file && o.preallocate_metadata && !o.extended_l2)
    return invalid("Backing file and preallocation can only be used at the same time if extended_l2 is enabled");
  if (o.version == 2 && o.data_file)
    return invalid(
        "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)");
  if (o.data_file_raw && !o.data_file) return invalid("data-file-raw requires data-file");
  if (o.data_file_raw && o.backing_file)
    return invalid("Backing file and data-file-raw cannot be used at the same time");
  if (o.encryption && o.old_aes_encryption) return invalid("An image is encrypted by one method, not by two");
  if (o.size % 512 != 0) return invalid("Image size must be a multiple of 512 bytes");
  return {};
}

Plan make_plan(const Header& h, uint64_t luks_bytes, bool preallocated) {
  Plan p;
  p.luks_clusters = div_round_up(luks_bytes, h.cluster_size());
  p.l1_clusters = div_round_up(uint64_t{h.l1_size} * 8, h.cluster_size());
  if (preallocated) {
    const uint64_t data_clusters = div_round_up(h.size, h.cluster_size());
    p.l2_tables = div_round_up(data_clusters, h.l2_entries());
    if (!h.has_data_file()) p.data_clusters = data_clusters;
  }
  for (;;) {  // every refcount block and table cluster is itself counted
    const uint64_t blocks = std::max<uint64_t>(1, div_round_up(p.all(), h.refcounts_per_block()));
    const uint64_t table = std::max<uint64_t>(1, div_round_up(blocks * 8, h.cluster_size()));
    if (blocks == p.blocks && table == p.table_clusters) return p;
    p.blocks = std::max(blocks, p.blocks);
    p.table_clusters = std::max(table, p.table_clusters);
  }
}

Result<void> write_preallocated(BlockDevice& file, const Header& h, const Plan& p) {
  const uint64_t words = h.l2_entry_size() / 8;
  std::vector<be64> table(h.cluster_size() / 8);
  // An external data file has everything at the guest's own offsets.
  uint64_t data = h.has_data_file() ? 0 : p.first_data();
  uint64_t left = div_round_up(h.size, h.cluster_size());
  for (uint64_t t = 0; t < p.l2_tables; ++t) {
    std::fill(table.begin(), table.end(), be64(0));
    for (uint64_t i = 0; i < h.l2_entries() && left != 0; ++i, ++data, --left) {
      table[i * words] = (data * h.cluster_size()) | kEntryCopied;
      // Extended entries: the cluster is there, none of its subclusters is allocated, so a backing file shows through.
    }
    TRY(file.write_at((p.first_l2() + t) * h.cluster_size(), std::as_bytes(std::span(table))));
  }
  // Data clusters exist as a hole: they read as zeroes.
  return file.resize(p.all() * h.cluster_size());
}

// `luks` is the beginning of the header; behind it, up to the last cluster's end, are zeroes.
Result<void> write_luks(BlockDevice& file, std::span<const std::byte> luks, uint64_t offset, uint64_t length) {
  static constexpr std::array<std::byte, 512> kLast{};
  TRY(file.write_at(offset, luks));
  TRY(file.write_at(offset + length - kLast.size(), kLast));  // so that the file goes so far
  return file.write_zeroes(offset + luks.size(), length - luks.size(), ZeroMode::kMayUnmap);
}

HeaderExtension luks_extension(uint64_t offset, uint64_t length) {
  HeaderExtension extension{kExtensionCrypto, std::vector<std::byte>(16)};
  store_be(extension.data.data(), offset);
  store_be(extension.data.data() + 8, length);
  return extension;
}

}  // namespace

Result<void> Image::create(BlockDevice& file, const CreateOptions& o) {
  TRY(check_options(o));
  Header h;
  h.version = o.version;
  h.cluster_bits = static_cast<uint32_t>(std::countr_zero(o.cluster_size));
  h.size = o.size;
  h.refcount_order = static_cast<uint32_t>(std::countr_zero(o.refcount_bits));
  if (o.lazy_refcounts) h.compatible_features |= kCompatLazyRefcounts;
  if (o.extended_l2) h.incompatible_features |= kIncompatExtendedL2;
  if (o.compression_type != CompressionType::kZlib) h.incompatible_features |= kIncompatCompression;
  h.compression_type = o.compression_type;
  if (o.data_file) h.incompatible_features |= kIncompatDataFile;
  if (o.data_file_raw) h.autoclear_features |= kAutoclearRawDataFile;
  h.data_file = o.data_file;
  h.backing_file = o.backing_file;
  h.backing_format = o.backing_format;
  const uint64_t l1_entries = h.l1_entries_for(o.size);
  if (l1_entries * 8 > kMaxL1Bytes)
    return invalid(fmt::format("a disk of {} bytes is too large for clusters of {} bytes (at most {} bytes)", o.size,
                               o.cluster_size, (kMaxL1Bytes / 8) * h.bytes_per_l2_table()));
  h.l1_size = static_cast<uint32_t>(l1_entries);
  const bool preallocated = o.preallocate_metadata || o.data_file_raw;
  const uint64_t luks_bytes = o.encryption ? crypto::luks_header_area(o.encryption->cipher) : 0;
  const Plan p = make_plan(h, luks_bytes, preallocated);
  if (p.table_clusters * h.cluster_size() > std::max(kMaxRefcountTableBytes, h.cluster_size()))
    return invalid(
        fmt::format("a preallocated disk of {} bytes needs a refcount table beyond the limit of 8 MiB", o.size));
  h.refcount_table_offset = h.cluster_size();
  h.refcount_table_clusters = static_cast<uint32_t>(p.table_clusters);
  h.l1_table_offset = l1_entries == 0 ? 0 : p.first_l1() * h.cluster_size();
  std::vector<std::byte> luks;
  if (o.encryption) {
    CHECK(o.passphrase != nullptr);
    luks = TRY(crypto::make_luks_header(*o.encryption, *o.passphrase));
    h.crypt_method = CryptMethod::kLuks;
    h.extensions.push_back(luks_extension(p.first_luks() * h.cluster_size(), luks_bytes));
  }
  if (o.old_aes_encryption) h.crypt_method = CryptMethod::kAes;
  const std::vector<std::byte> header_cluster = TRY(serialize_header(h)).cluster;

  TRY(file.resize(0));
  std::vector<be64> table(p.table_clusters * h.cluster_size() / 8);
  for (uint64_t b = 0; b < p.blocks; ++b) table[b] = (p.first_block() + b) * h.cluster_size();
  TRY(file.write_at(h.refcount_table_offset, std::as_bytes(std::span(table))));

  RefcountArray counts(h.refcount_order, p.blocks * h.cluster_size());
  for (uint64_t c = 0; c < p.all(); ++c) counts.set(c, 1);
  TRY(file.write_at(p.first_block() * h.cluster_size(), counts.bytes()));

  std::vector<be64> l1(h.l1_size);  // where nothing follows, the file ends with its last entry, as QEMU's do
  for (uint64_t t = 0; t < p.l2_tables; ++t) l1[t] = ((p.first_l2() + t) * h.cluster_size()) | kEntryCopied;
  if (!l1.empty()) TRY(file.write_at(h.l1_table_offset, std::as_bytes(std::span(l1))));
  if (!luks.empty()) TRY(write_luks(file, luks, p.first_luks() * h.cluster_size(), p.luks_clusters * h.cluster_size()));
  if (preallocated) TRY(write_preallocated(file, h, p));
  // The header comes last: what is interrupted before is not a qcow2 image to anybody.
  TRY(file.flush());  // everything that the header names | the header
  TRY(file.write_at(0, header_cluster));
  return file.flush();
}

}  // namespace varve::qcow2
