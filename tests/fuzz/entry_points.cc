#include "fuzz/entry_points.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "base/checked.h"
#include "base/endian.h"
#include "check/check.h"
#include "check/deep.h"
#include "crypto/luks_volume.h"
#include "io/memory_device.h"
#include "qcow2/bitmap_directory.h"
#include "qcow2/compressed_cluster.h"
#include "qcow2/dirty_bitmaps.h"
#include "qcow2/snapshot_transaction.h"

namespace varve::fuzz {
namespace {

using qcow2::Image;
using qcow2::SnapshotTransaction;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kPiece = 48 << 10;  // bytes that are looked at in one place

std::shared_ptr<MemoryDevice> device_of(std::span<const std::byte> bytes) {
  auto device = std::make_shared<MemoryDevice>("fuzz.qcow2");
  CHECK(device->write_at(0, bytes));
  return device;
}

// Where a disk is looked at: its beginning, its middle, its end.
std::vector<uint64_t> places(uint64_t size) {
  if (size <= kPiece) return {0};
  return {0, size / 2, size - kPiece};
}

// The bytes at one place; none where the image says that it is broken there.
std::optional<Bytes> look(BlockDevice& disk, uint64_t offset) {
  const uint64_t size = *disk.size();
  Bytes bytes(std::min(kPiece, size - std::min(size, offset)));
  if (!disk.read_at(offset, bytes)) return std::nullopt;
  return bytes;
}

std::vector<std::optional<Bytes>> look_around(BlockDevice& disk) {
  std::vector<std::optional<Bytes>> all;
  for (const uint64_t offset : places(*disk.size())) all.push_back(look(disk, offset));
  return all;
}

// A piece that could be read must read the same; one that could not may have become anything.
void must_be_the_same(const std::vector<std::optional<Bytes>>& before, const std::vector<std::optional<Bytes>>& after) {
  CHECK(before.size() == after.size());
  for (size_t i = 0; i < before.size(); ++i)
    if (before[i]) CHECK(after[i] == before[i]);
}

template <typename Change>
Result<void> transact(Image& image, Change change) {
  SnapshotTransaction t = TRY(SnapshotTransaction::begin(image));
  TRY(change(t));
  const qcow2::PreparedCommit prepared = TRY(t.prepare());
  TRY(SnapshotTransaction::commit(image, prepared));
  (void)SnapshotTransaction::discard_freed(image, prepared);
  return {};
}

std::unique_ptr<Image> open(const std::shared_ptr<MemoryDevice>& file, bool writable) {
  auto image = Image::open(file, {.writable = writable});
  return image ? std::move(*image) : nullptr;
}

void read_everything(Image& image) {
  (void)look_around(image);
  (void)image.extents(0, 4 << 20);
  for (size_t i = 0; i < std::min<size_t>(image.snapshots().size(), 4); ++i) {
    if (auto view = image.open_snapshot(i)) (void)look_around(**view);
    (void)image.snapshot_usage(i);
  }
}

// Guest writes. What they put there is there; how much of it an odd image takes is its own affair.
void write_something(Image& image) {
  const uint64_t size = *image.size();
  const Bytes data(5000, std::byte{0xd5});
  for (const uint64_t offset : places(size)) {
    const uint64_t length = std::min<uint64_t>(data.size(), size - offset);
    (void)image.write_at(offset, std::span(data).first(length));
    const uint64_t rest = std::min<uint64_t>(20000, size - offset);
    (void)image.write_zeroes(offset + rest / 2, rest - rest / 2, ZeroMode::kMayUnmap);
    (void)image.discard(offset + rest / 3, rest / 3);
    (void)image.write_zeroes(offset, std::min<uint64_t>(rest, 700), ZeroMode::kKeepAllocated);
  }
  (void)image.flush();
}

}  // namespace

void open_image(std::span<const std::byte> bytes) {
  const auto file = device_of(bytes);
  const auto image = open(file, false);
  if (image == nullptr) return;
  (void)qcow2::serialize_header(image->header());
  const Bytes table = qcow2::serialize_snapshot_table(image->snapshots());
  (void)qcow2::next_snapshot_id(image->snapshots());
  for (size_t i = 0; i < std::min<size_t>(image->snapshots().size(), 4); ++i) (void)image->open_snapshot(i);
  (void)image->extents(0, 1 << 20);
}

void live(std::span<const std::byte> bytes) {
  {
    const auto file = device_of(bytes);
    if (const auto image = open(file, false)) read_everything(*image);
    Bytes after(*file->size());
    CHECK(file->read_at(0, after));
    CHECK(std::equal(bytes.begin(), bytes.end(), after.begin(), after.end()));  // who only reads changes nothing
  }
  const auto file = device_of(bytes);
  auto image = open(file, true);
  if (image == nullptr) return;

  const auto disk = look_around(*image);
  if (transact(*image, [](SnapshotTransaction& t) { return t.create({.name = "fuzz", .date_sec = 1}); })) {
    must_be_the_same(disk, look_around(*image));
    const size_t index = image->snapshots().size() - 1;
    const auto view = image->open_snapshot(index);
    CHECK(view || !image->check_readable());  // without its key an encrypted disk shows nothing
    if (view) must_be_the_same(disk, look_around(**view));
    image = open(file, true);
    CHECK(image != nullptr);
    must_be_the_same(disk, look_around(*image));
  }
  write_something(*image);
  for (size_t i = 0; i < std::min<size_t>(image->snapshots().size(), 2); ++i)
    (void)transact(*image, [&](SnapshotTransaction& t) -> Result<void> {
      TRY(t.create({.name = "safety"}));
      return t.revert(i);
    });
  write_something(*image);
  (void)transact(*image, [](SnapshotTransaction& t) -> Result<void> {
    if (t.snapshots().empty()) return {};
    TRY(t.rename(0, "renamed"));
    const size_t last = t.snapshots().size() - 1;
    return t.remove(std::span(&last, 1));
  });
  (void)transact(*image, [](SnapshotTransaction& t) -> Result<void> {
    std::vector<size_t> all(t.snapshots().size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = i;
    return t.remove(all);
  });
  write_something(*image);
  image.reset();
  if (const auto again = open(file, false)) read_everything(*again);
}

void check_image(std::span<const std::byte> bytes) {
  const auto file = device_of(bytes);
  if (!check::open_layout(*file)) return;
  const check::Report silent{.line = [](const std::string&) {}, .error = [](const std::string&) {}};
  const auto found = check::check_image(*file, {}, silent);
  Bytes after(*file->size());
  CHECK(file->read_at(0, after));
  CHECK(std::equal(bytes.begin(), bytes.end(), after.begin(), after.end()));
  if (!found || found->tally.error != 0) return;
  check::Tally tally;
  (void)check::check_deep(*file, silent, tally);
  for (const check::Repair repair : {check::Repair::kLeaks, check::Repair::kAll}) {
    const auto disk = device_of(bytes);
    const auto repaired = check::check_image(*disk, {.repair = repair}, silent);
    if (!repaired || repaired->tally.error != 0) continue;
    const auto again = check::check_image(*disk, {}, silent);
    // What was sound stays sound.
    if (found->tally.corruptions == 0 && found->tally.leaks == 0) {
      CHECK(again && again->tally.corruptions == 0 && again->tally.leaks == 0);
    }
  }
}

namespace {

constexpr uint64_t kTableCluster = 512;
constexpr uint64_t kTableDisk = 128 << 10;

// A small good image, and `bytes` behind it.
std::shared_ptr<MemoryDevice> image_with(std::span<const std::byte> bytes, uint64_t& offset) {
  auto file = std::make_shared<MemoryDevice>("fuzz.qcow2");
  CHECK(Image::create(*file, {.size = kTableDisk, .cluster_size = kTableCluster}));
  offset = align_up(*file->size(), kTableCluster);
  CHECK(file->write_at(offset, bytes));
  CHECK(file->resize(align_up(offset + bytes.size(), kTableCluster)));
  return file;
}

}  // namespace

void snapshot_table(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  uint64_t offset = 0;
  const auto file = image_with(bytes.subspan(1), offset);
  qcow2::Header header = *qcow2::read_header(*file);
  header.nb_snapshots = std::to_integer<uint32_t>(bytes[0]);
  header.snapshots_offset = offset;
  const auto table = qcow2::read_snapshot_table(*file, header);
  if (!table) return;
  CHECK(table->snapshots.size() == header.nb_snapshots);
  (void)qcow2::next_snapshot_id(table->snapshots);
  const Bytes written = qcow2::serialize_snapshot_table(table->snapshots);
  CHECK(file->write_at(offset, written));
  CHECK(file->resize(align_up(std::max(*file->size(), offset + written.size()), kTableCluster)));
  const auto again = qcow2::read_snapshot_table(*file, header);
  CHECK(again && qcow2::serialize_snapshot_table(again->snapshots) == written);
  for (size_t i = 0; i < table->snapshots.size(); ++i) {
    const qcow2::Snapshot &a = table->snapshots[i], &b = again->snapshots[i];
    CHECK(a.id == b.id && a.name == b.name && a.l1_table_offset == b.l1_table_offset && a.l1_size == b.l1_size);
    CHECK(a.vm_state_size == b.vm_state_size && a.unknown_extra_data == b.unknown_extra_data);
  }
}

void bitmaps(std::span<const std::byte> bytes) {
  if (bytes.size() < 4) return;
  uint64_t offset = 0;
  const auto file = image_with(bytes.subspan(4), offset);
  qcow2::Header header = *qcow2::read_header(*file);
  const uint32_t size = load_be<uint32_t>(bytes.data()) & 0xffffff;
  header.bitmaps = {
      .nb_bitmaps = std::to_integer<uint32_t>(bytes[0]), .directory_size = size, .directory_offset = offset};
  const auto directory = qcow2::read_bitmap_directory(*file, header, *header.bitmaps);
  (void)qcow2::bitmap_clusters(*file, header, *header.bitmaps);
  auto loaded = qcow2::load_bitmaps(*file, header);
  if (!directory) {
    CHECK(!loaded);
    return;
  }
  const Bytes written = qcow2::serialize_bitmap_directory(*directory);
  CHECK(written.size() <= align_up(size, 8));
  if (!loaded || loaded->empty()) return;
  for (qcow2::DirtyBitmap& bitmap : *loaded) {
    if (bitmap.inconsistent) continue;
    bitmap.insert(kTableDisk / 3, 1000);
    CHECK(bitmap.contains(kTableDisk / 3) && bitmap.contains(kTableDisk / 3 + 999));
    if (!loaded->front().inconsistent) qcow2::merge_bitmap(loaded->front(), bitmap, kTableDisk);
    CHECK(loaded->front().inconsistent || loaded->front().contains(kTableDisk / 3));
    bitmap.clear();
    CHECK(!bitmap.contains(kTableDisk / 3));
  }
}

void decompress(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto choice = std::to_integer<unsigned>(bytes[0]);
  const auto type = (choice & 1) != 0 ? qcow2::CompressionType::kZstd : qcow2::CompressionType::kZlib;
  constexpr size_t kSizes[] = {512, 4096, 65536, 2 << 20};
  // Something behind the cluster that must stay.
  Bytes cluster(kSizes[choice >> 1 & 3] + 16, std::byte{0xcc});
  (void)qcow2::decompress_cluster(type, bytes.subspan(1), std::span(cluster).first(cluster.size() - 16));
  CHECK(std::all_of(cluster.end() - 16, cluster.end(), [](std::byte b) { return b == std::byte{0xcc}; }));
}

void luks_header(std::span<const std::byte> bytes) {
  const auto device = device_of(bytes);
  const auto header = crypto::read_luks_header({device.get(), 0, bytes.size()});
  if (!header) return;
  for (const crypto::LuksSlot& slot : header->slots)
    CHECK(slot.key_offset + crypto::luks_material_bytes(header->cipher) <= header->payload_offset);
  const auto again = crypto::parse_luks_header(crypto::serialize_luks_header(*header));
  CHECK(again && crypto::serialize_luks_header(*again) == crypto::serialize_luks_header(*header));
}

}  // namespace varve::fuzz
