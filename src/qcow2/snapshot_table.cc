#include "qcow2/snapshot_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {
namespace {

struct RawSnapshot {
  be64 l1_table_offset;
  be32 l1_size;
  be16 id_size;
  be16 name_size;
  be32 date_sec;
  be32 date_nsec;
  be64 vm_clock_nsec;
  be32 vm_state_size;
  be32 extra_data_size;
};
static_assert(sizeof(RawSnapshot) == 40);
constexpr size_t kKnownExtra = 24;  // vm_state_size (64 bit), disk size, icount

Error corrupt(BlockDevice& file, uint64_t offset, const std::string& what) {
  return corruption(file.name(), offset, what);
}

// Places first: of a disk whose size makes no sense the table is known all the same.
std::optional<SnapshotFault> find_fault(const Header& header, const Snapshot& s, uint64_t file_size) {
  const uint64_t bytes = uint64_t{s.l1_size} * 8;
  const auto end = checked_add(s.l1_table_offset, bytes);
  const auto fault = [&](const char* why, bool table_is_known) {
    return SnapshotFault{fmt::format("its L1 table (offset {:#x}, {} entries) {}", s.l1_table_offset, s.l1_size, why),
                         table_is_known};
  };
  if (bytes > kMaxL1Bytes) return fault("is too large", false);
  if (bytes != 0) {
    if (s.l1_table_offset % header.cluster_size() != 0) return fault("is not cluster-aligned", false);
    if (s.l1_table_offset < header.cluster_size()) return fault("overlaps the header", false);
    if (!end || *end > align_up(file_size, header.cluster_size())) return fault("lies outside of the file", false);
  }
  if (!s.disk_size) return std::nullopt;
  if (*s.disk_size > uint64_t{1} << 62) return fault("belongs to a disk of impossible size", true);
  if (header.l1_entries_for(*s.disk_size) > s.l1_size) return fault("is too small for its disk size", true);
  return std::nullopt;
}

// A window on the table that is read in large pieces: entries have no common length.
class TableReader {
 public:
  TableReader(BlockDevice& file, uint64_t offset, uint64_t file_size)
      : file_(file), offset_(offset), file_size_(file_size) {}

  // The next `bytes` bytes; valid until the next call.
  Result<std::span<const std::byte>> take(size_t bytes) {
    if (at_ + bytes > buffer_.size()) TRY(fill(bytes));
    const auto piece = std::span<const std::byte>(buffer_).subspan(at_, bytes);
    at_ += bytes;
    taken_ += bytes;
    if (taken_ > kMaxSnapshotTableBytes)
      return corrupt(file_, offset_, fmt::format("snapshot table exceeds {} bytes", kMaxSnapshotTableBytes));
    return piece;
  }
  uint64_t taken() const { return taken_; }

 private:
  Result<void> fill(size_t bytes) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at_));
    at_ = 0;
    const uint64_t position = offset_ + taken_ + buffer_.size();
    const uint64_t want = std::max<uint64_t>(bytes - buffer_.size(), size_t{256} << 10);
    const uint64_t have = position < file_size_ ? std::min(want, file_size_ - position) : 0;
    if (buffer_.size() + have < bytes) return corrupt(file_, position, "snapshot table runs past the end of the file");
    const size_t old = buffer_.size();
    buffer_.resize(old + have);
    return file_.read_at(position, std::span(buffer_).subspan(old));
  }

  BlockDevice& file_;
  uint64_t offset_;
  uint64_t file_size_;
  std::vector<std::byte> buffer_;
  size_t at_ = 0;
  uint64_t taken_ = 0;
};

std::string text(std::span<const std::byte> bytes) {
  std::string s(bytes.size(), '\0');
  if (!bytes.empty()) std::memcpy(s.data(), bytes.data(), bytes.size());
  return s;
}

}  // namespace

Result<SnapshotTable> read_snapshot_table(BlockDevice& file, const Header& header) {
  SnapshotTable table;
  if (header.nb_snapshots == 0) return table;
  const uint64_t file_size = TRY(file.size());
  table.snapshots.reserve(header.nb_snapshots);
  TableReader reader(file, header.snapshots_offset, file_size);
  for (uint32_t i = 0; i < header.nb_snapshots; ++i) {
    RawSnapshot raw;
    const auto fixed = TRY(reader.take(sizeof raw));
    std::memcpy(static_cast<void*>(&raw), fixed.data(), sizeof raw);
    Snapshot s;
    s.l1_table_offset = raw.l1_table_offset;
    s.l1_size = raw.l1_size;
    s.date_sec = raw.date_sec;
    s.date_nsec = raw.date_nsec;
    s.vm_clock_nsec = raw.vm_clock_nsec;
    s.vm_state_size = raw.vm_state_size;
    const uint32_t extra_size = raw.extra_data_size;
    const uint16_t id_size = raw.id_size;
    const uint16_t name_size = raw.name_size;
    if (extra_size > kMaxSnapshotExtraData)
      return corrupt(
                 file, header.snapshots_offset + reader.taken(),
                 fmt::format("snapshot {} has {} bytes of extra data (limit {})", i, extra_size, kMaxSnapshotExtraData))
          .with_note(
              fmt::format("`qemu-img check -r all {}` removes what is too much; copy the file first", file.name()));
    const auto extra = TRY(reader.take(extra_size));
    if (extra_size >= 8) s.vm_state_size = load_be<uint64_t>(extra.data());
    if (extra_size >= 16) s.disk_size = load_be<uint64_t>(extra.data() + 8);
    if (extra_size >= 24) s.icount = load_be<uint64_t>(extra.data() + 16);
    if (extra_size > kKnownExtra) {
      const auto unknown = extra.subspan(kKnownExtra);
      s.unknown_extra_data.assign(unknown.begin(), unknown.end());
    }
    s.id = text(TRY(reader.take(id_size)));
    s.name = text(TRY(reader.take(name_size)));
    if (const uint64_t rest = reader.taken() % 8; rest != 0 && i + 1 < header.nb_snapshots) TRY(reader.take(8 - rest));
    s.fault = find_fault(header, s, file_size);
    table.snapshots.push_back(std::move(s));
  }
  table.bytes = reader.taken();
  return table;
}

std::vector<std::byte> serialize_snapshot_table(std::span<const Snapshot> snapshots) {
  std::vector<std::byte> out;
  const auto append = [&](const void* data, size_t bytes) {
    const auto* p = static_cast<const std::byte*>(data);
    out.insert(out.end(), p, p + bytes);
  };
  for (const Snapshot& s : snapshots) {
    RawSnapshot raw;
    raw.l1_table_offset = s.l1_table_offset;
    raw.l1_size = s.l1_size;
    raw.id_size = static_cast<uint16_t>(s.id.size());
    raw.name_size = static_cast<uint16_t>(s.name.size());
    raw.date_sec = s.date_sec;
    raw.date_nsec = s.date_nsec;
    raw.vm_clock_nsec = s.vm_clock_nsec;
    // As QEMU writes it: the 32-bit field is 0 where the number needs the 64-bit one.
    raw.vm_state_size = s.vm_state_size <= 0xffffffff ? static_cast<uint32_t>(s.vm_state_size) : 0;
    // What the entry did not have is not invented, unless something behind it has to be kept.
    size_t extra = 8;
    if (s.disk_size) extra = 16;
    if (s.icount || !s.unknown_extra_data.empty()) extra = kKnownExtra;
    if (!s.disk_size && extra == 8 && s.vm_state_size <= 0xffffffff) extra = 0;
    raw.extra_data_size = static_cast<uint32_t>(extra + s.unknown_extra_data.size());
    append(&raw, sizeof raw);
    const be64 known[3] = {s.vm_state_size, s.disk_size.value_or(0), s.icount.value_or(0)};
    append(known, extra);
    append(s.unknown_extra_data.data(), s.unknown_extra_data.size());
    append(s.id.data(), s.id.size());
    append(s.name.data(), s.name.size());
    out.resize(align_up(out.size(), 8));
  }
  return out;
}

Error fault_of(const std::string& image, const Header& header, const Snapshot& snapshot) {
  Error e = corruption(image, header.snapshots_offset,
                       fmt::format("snapshot '{}' (id {}) is damaged: {}", snapshot.name, snapshot.id,
                                   snapshot.fault ? snapshot.fault->what : "nothing"));
  if (snapshot.fault && snapshot.fault->table_is_known)
    return std::move(e).with_note(
        fmt::format("nothing else in the image is; `qemu-img snapshot -d '{}' {}` deletes it", snapshot.name, image));
  return std::move(e)
      .with_note(
          fmt::format("the disk and the other snapshots can be read: `qemu-img convert -O qcow2 {} NEW` copies the "
                      "disk, with `-l NAME` a snapshot",
                      image))
      .with_note(
          fmt::format("`qemu-img check {}` says what else is wrong; copy the file before a repair, which takes the "
                      "clusters of this snapshot for leaks",
                      image));
}

std::optional<size_t> find_by_name(std::span<const Snapshot> snapshots, const std::string& name) {
  const auto it = std::find_if(snapshots.begin(), snapshots.end(), [&](const Snapshot& s) { return s.name == name; });
  if (it == snapshots.end()) return std::nullopt;
  return static_cast<size_t>(it - snapshots.begin());
}

std::optional<size_t> find_by_id_or_name(std::span<const Snapshot> snapshots, const std::string& id_or_name) {
  const auto it =
      std::find_if(snapshots.begin(), snapshots.end(), [&](const Snapshot& s) { return s.id == id_or_name; });
  if (it != snapshots.end()) return static_cast<size_t>(it - snapshots.begin());
  return find_by_name(snapshots, id_or_name);
}

std::string next_snapshot_id(std::span<const Snapshot> snapshots) {
  uint64_t highest = 0;
  for (const Snapshot& s : snapshots) highest = std::max<uint64_t>(highest, std::strtoull(s.id.c_str(), nullptr, 10));
  uint64_t next = highest + 1;
  if (next == 0)  // somebody has used the highest number there is: the lowest one that nobody has
    while (std::any_of(snapshots.begin(), snapshots.end(),
                       [&](const Snapshot& s) { return s.id == std::to_string(next); }))
      ++next;
  return std::to_string(next);
}

}  // namespace varve::qcow2
